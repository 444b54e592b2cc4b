"""Generation: what generating text was predicted to cost, of the whole and per token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_neuralpower.platform.prediction import (
    EXTRAPOLATED,
    INFERRED,
    UNCOVERED,
    Prediction,
    mean_power,
)
from pytest_neuralpower.units import show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.platform.intervals import Interval

#: What stands behind a figure that no measurement of the device vouches for, gravest first; the
#: others are known as the platform's tier says.
_BEHIND: Final = (UNCOVERED, INFERRED, EXTRAPOLATED)


class Latency(NamedTuple):
    """Time between two tokens of one sample, ms: over all steps, of the first and of the last."""

    mean: float
    first: float
    last: float


class Draft(NamedTuple):
    """Speculative decoding: a second model proposes ``tokens``, each accepted with probability
    ``acceptance``; a round yields ``per_round`` tokens in the mean."""

    model: str
    tokens: int
    acceptance: float
    per_round: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """The steps after the prompt; with a draft model, its rounds.

    Attributes
    ----------
    cached
        Tokens in the cache before each step.
    runtime_ms, energy_mj
        Of each step; empty where the platform does not know it.
    last
        The last step, layer by layer: of the model itself.
    traces
        Steps that were traced; the sizes of all others follow from these.
    runtime_interval_ms
        Of all steps; None on a platform without.
    """

    cached: tuple[int, ...]
    runtime_ms: tuple[float, ...]
    energy_mj: tuple[float, ...]
    last: Prediction
    traces: int
    runtime_interval_ms: Interval | None = None

    def __len__(self) -> int:
        return len(self.cached)


@dataclass(frozen=True, slots=True, repr=False)
class Generation(Prediction):
    """Runtime, energy and power of generating ``new_tokens`` for each of ``batch`` samples.

    The prompt's call yields the first token, and each step one more. Nothing overlaps: the batch
    starts and ends together. Energy is of the whole batch; ``energy_mj_per_token`` divides it by
    all new tokens.

    ``layers`` are those of the prompt, then those of the steps: one for each configuration, or for
    each layer that grows with the cache, with what all of its runs take.

    Attributes
    ----------
    tokens
        New tokens of the whole batch.
    prompts
        The prompt's call; with a draft model, its call too.
    decode
        The steps; None where the prompt's call yields all tokens.
    draft
        Of speculative decoding; None without.
    tier
        How the platform knows the runtime of layers without a flag.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    prompts: tuple[Prediction, ...] = ()
    decode: Decoding | None = None
    draft: Draft | None = None
    tier: str = ""

    def __repr__(self) -> str:
        return f"<Generation of {self._title()}: {', '.join(self._figures())}>"

    def __str__(self) -> str:
        return self.text()

    @property
    def prefill(self) -> Prediction:
        """The prompt's call."""
        return self.prompts[0]

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token: of the prompt's call, and of the draft model's."""
        return _sum(each.runtime_ms for each in self.prompts)

    @property
    def ttft_interval_ms(self) -> Interval | None:
        """None on a platform without, and with a draft model."""
        return self.prefill.runtime_interval_ms if len(self.prompts) == 1 else None

    @property
    def runtime_ms(self) -> float | None:
        """Of the whole; None where the platform knows energy alone."""
        steps = () if self.decode is None else self.decode.runtime_ms
        return _sum([self.ttft_ms, *steps])

    @property
    def energy_mj(self) -> float | None:
        """Of the whole batch; None where the platform has no power."""
        return _sum([self._prompt_mj, *(() if self.decode is None else self.decode.energy_mj)])

    @property
    def _prompt_mj(self) -> float | None:
        return _sum(each.energy_mj for each in self.prompts)

    @property
    def energy_mj_per_token(self) -> float | None:
        """Of the whole, prompt included, over all new tokens."""
        energy = self.energy_mj
        return None if energy is None else energy / self.tokens

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of the whole batch over the whole time."""
        runtime = self.runtime_ms
        return 1e3 * self.tokens / runtime if runtime else None

    @property
    def itl_ms(self) -> Latency | None:
        """Inter-token latency; None without steps, or where only energy is known."""
        if self.decode is None or not self.decode.runtime_ms:
            return None
        times = self.decode.runtime_ms
        mean = math.fsum(times) / len(times)
        return Latency(*(each / self._per_round for each in (mean, times[0], times[-1])))

    @property
    def itl_interval_ms(self) -> Interval | None:
        """Of its mean; None on a platform without."""
        if self.decode is None or self.decode.runtime_interval_ms is None:
            return None
        parts = len(self.decode) * self._per_round
        whole = self.decode.runtime_interval_ms
        return whole._replace(low=whole.low / parts, high=whole.high / parts)

    @property
    def _per_round(self) -> float:
        return 1.0 if self.draft is None else self.draft.per_round

    def shares(self) -> dict[str, dict[str, float]]:
        """By kind of layer, largest first: its share of the cost, by what stands behind it.

        That is the platform's tier (``public``, ``measured``, ...), ``inferred`` (not measured on
        the device), ``extrapolated`` (sizes or dtype not measured) or ``uncovered`` (no formula).
        """
        found: dict[str, dict[str, float]] = {}
        total = self.cost
        for item in self.layers:
            known = next((flag for flag in _BEHIND if flag in item.flags), self.tier or "known")
            kind = found.setdefault(item.layer.kind, {})
            kind[known] = kind.get(known, 0.0) + (item.cost / total if total else 0.0)
        return dict(sorted(found.items(), key=lambda pair: -math.fsum(pair[1].values())))

    # -- For people and programs.

    def _title(self) -> str:
        return (
            f"{self.model} on {self.platform}, batch {self.batch}: {self.prompt_tokens:,} prompt + "
            f"{self.new_tokens:,} new tokens"
        )

    def _figures(self) -> list[str]:
        found = []
        if self.ttft_ms is not None:
            found.append(f"first token after {show('runtime', self.ttft_ms)}")
        latency = self.itl_ms
        if latency is not None:
            found.append(f"then one every {show('runtime', latency.mean)}")
        if self.energy_mj_per_token is not None:
            found.append(f"{show('energy', self.energy_mj_per_token)} a token")
        return found

    def text(self) -> str:
        """A short table: prompt, steps, whole, and what stands behind each kind's share."""
        from tabulate import tabulate  # noqa: PLC0415 - an idle plugin loads nothing

        steps = self.decode
        rows = [("prefill", self.ttft_ms, self._prompt_mj)]
        if steps is not None:
            rounds = "steps" if self.draft is None else "rounds"
            label = f"decode, {len(steps):,} {rounds}"
            rows.append((label, _total(steps.runtime_ms), _total(steps.energy_mj)))
        rows.append(("whole", self.runtime_ms, self.energy_mj))
        table = tabulate(
            [
                (name, _shown("runtime", runtime), _shown("energy", energy),
                 _shown("power", mean_power(energy, runtime)))
                for name, runtime, energy in rows
            ],
            ("", "time", "energy", "power"),
            tablefmt="plain", colalign=("left", "right", "right", "right"), disable_numparse=True,
        )  # fmt: skip
        latency, rate = self.itl_ms, self.tokens_per_second
        lines = [self._title(), *(f"  {line.rstrip()}" for line in table.splitlines())]
        if latency is not None:
            lines.append(
                f"  inter-token latency {show('runtime', latency.mean)} "
                f"(first {show('runtime', latency.first)}, last {show('runtime', latency.last)})"
            )
        per = [] if rate is None else [f"{rate:,.0f} tokens/s"]
        if self.energy_mj_per_token is not None:
            per.append(f"{show('energy', self.energy_mj_per_token)} a token")
        lines.append(f"  {', '.join(per)}")
        for quantity, unit in (
            ("energy", "energy_interval_mj"),
            ("runtime", "runtime_interval_ms"),
        ):
            interval = getattr(self, unit)
            if interval is not None:
                low, high = _shown(quantity, interval.low), _shown(quantity, interval.high)
                lines.append(f"  {interval.coverage:.0%} sure: {quantity} {low} to {high}")
        for kind, behind in self.shares().items():
            parts = ", ".join(
                f"{show_percent(share)} {name}"
                for name, share in sorted(behind.items(), key=lambda pair: -pair[1])
            )
            lines.append(f"  {kind:12} {show_percent(math.fsum(behind.values())):>6}  {parts}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, object]:
        """Everything but layers, in JSON's types; ms, mJ, W."""
        steps, latency = self.decode, self.itl_ms
        plain = (
            *("model", "platform", "platform_sha256", "estimator", "batch", "prompt_tokens"),
            *("new_tokens", "runtime_ms", "energy_mj", "power_w", "energy_basis"),
            *("energy_mj_per_token", "tokens_per_second", "ttft_ms"),
        )
        intervals = ("runtime_interval_ms", "energy_interval_mj", "power_interval_w")
        decode = None if steps is None else {
            "steps": len(steps),
            "traces": steps.traces,
            "cached": list(steps.cached),
            "runtime_ms": list(steps.runtime_ms),
            "energy_mj": list(steps.energy_mj),
        }  # fmt: skip
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: _ends(getattr(self, name)) for name in intervals},
            "itl_ms": None if latency is None else latency._asdict(),
            "prefill": {"runtime_ms": self.ttft_ms, "energy_mj": self._prompt_mj},
            "decode": decode,
            "draft": None if self.draft is None else self.draft._asdict(),
            "shares": self.shares(),
            "notes": list(self.notes),
        }


def _ends(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None where a value is not known."""
    known = list(values)
    return None if None in known else math.fsum(each for each in known if each is not None)


def _total(values: Sequence[float]) -> float | None:
    """Of the figures of all steps; None where the platform does not know them."""
    return math.fsum(values) if values else None


def _shown(quantity: Any, value: float | None) -> str:
    return "" if value is None else show(quantity, value)
