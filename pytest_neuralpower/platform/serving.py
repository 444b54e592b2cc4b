"""What generating text costs: the prompt in one call, then a step for each token.

Every step is priced in its own configuration, at the cache's length that it meets; what is equal
in all of them is priced once (:mod:`pytest_neuralpower.tracing.decoding`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pytest_neuralpower.collector import collector_paused
from pytest_neuralpower.errors import OptionError, PlatformError
from pytest_neuralpower.platform.catalog import as_platform, list_platforms, priced_by
from pytest_neuralpower.platform.prediction import (
    Host,
    LayerPrediction,
    Prediction,
    mean_power,
)
from pytest_neuralpower.platform.price import BEST, call_intervals
from pytest_neuralpower.units import show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.tracing.decoding import Engine, Experts, Language, Step, Stretch

#: What stands behind a figure that no measurement of the device vouches for, gravest first; the
#: others are known as the platform's tier says.
_BEHIND: Final = ("uncovered", "inferred", "extrapolated")


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
    layers
        One of each configuration that ran in any step; its figures are those of one run.
    counts
        How often each of them ran, in all steps.
    traces
        Steps that were traced; the others' sizes follow from these.
    """

    cached: tuple[int, ...]
    runtime_ms: tuple[float, ...]
    energy_mj: tuple[float, ...]
    layers: tuple[LayerPrediction, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    traces: int = 0

    def __len__(self) -> int:
        return len(self.cached)


@dataclass(frozen=True, slots=True)
class Generation:
    """Runtime, energy and power of generating ``new_tokens`` for each of ``batch`` samples.

    The prompt's call yields the first token, and each step one more. Energy is of the whole batch;
    ``energy_mj_per_token`` divides it by all new tokens. Nothing overlaps: the batch starts and
    ends together.

    Attributes
    ----------
    prefill
        The prompt's call; with a draft model both models' (``draft_prefill``).
    decode
        The steps; None where the prompt's call yields all tokens.
    draft
        Of speculative decoding; None without.
    runtime_interval_ms, energy_interval_mj, power_interval_w
        Of the whole; None on a platform without.
    tier
        How the platform knows the runtime of layers without a flag.
    """

    model: str
    platform: str
    platform_sha256: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    prefill: Prediction
    decode: Decoding | None
    draft: Draft | None = None
    draft_prefill: Prediction | None = None
    notes: tuple[str, ...] = ()
    energy_basis: str = ""
    estimator: str = BEST
    tier: str = ""
    host: Host | None = None
    runtime_interval_ms: Interval | None = None
    energy_interval_mj: Interval | None = None
    power_interval_w: Interval | None = None

    def __repr__(self) -> str:
        return f"<Generation of {self._title()}: {', '.join(self._figures())}>"

    def __str__(self) -> str:
        return self.text()

    @property
    def _prompts(self) -> tuple[Prediction, ...]:
        return (self.prefill,) if self.draft_prefill is None else (self.prefill, self.draft_prefill)

    @property
    def tokens(self) -> int:
        """New tokens of the whole batch."""
        return self.new_tokens * self.batch

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token: of the prompt's call."""
        return _sum(each.runtime_ms for each in self._prompts)

    @property
    def runtime_ms(self) -> float | None:
        """Of the whole; None where the platform knows energy alone."""
        steps = () if self.decode is None else self.decode.runtime_ms
        return _sum([self.ttft_ms, *steps])

    @property
    def energy_mj(self) -> float | None:
        """Of the whole batch; None where the platform has no power."""
        steps = () if self.decode is None else self.decode.energy_mj
        return _sum([*(each.energy_mj for each in self._prompts), *steps])

    @property
    def power_w(self) -> float | None:
        """Mean over the whole."""
        return mean_power(self.energy_mj, self.runtime_ms)

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
        per_step = 1.0 if self.draft is None else self.draft.per_round
        mean = math.fsum(times) / len(times)
        return Latency(mean / per_step, times[0] / per_step, times[-1] / per_step)

    @property
    def cost(self) -> float:
        """Sum of what layers are ranked by: energy, or runtime where energy is not known."""
        return math.fsum(cost for _, cost in self._costs())

    def _costs(self) -> Iterator[tuple[LayerPrediction, float]]:
        for prompt in self._prompts:
            for layer in prompt.layers:
                yield layer, layer.cost
        if self.decode is not None:
            for layer, count in zip(self.decode.layers, self.decode.counts, strict=True):
                yield layer, layer.cost * count

    def share(self, *flags: str) -> float:
        """Share (0..1) of the energy that carries any of ``flags``; of the runtime if no power."""
        wanted, total = frozenset(flags), self.cost
        flagged = [cost for layer, cost in self._costs() if not wanted.isdisjoint(layer.flags)]
        return math.fsum(flagged) / total if total else 0.0

    def shares(self) -> dict[str, dict[str, float]]:
        """By kind of layer, largest first: its share of the cost, by what stands behind it.

        That is the platform's tier (``public``, ``measured``, ...), ``inferred`` (not measured on
        the device), ``extrapolated`` (sizes or dtype not measured) or ``uncovered`` (no formula).
        """
        found: dict[str, dict[str, float]] = {}
        total = self.cost
        for layer, cost in self._costs():
            known = next((flag for flag in _BEHIND if flag in layer.flags), self.tier or "known")
            kind = found.setdefault(layer.layer.kind, {})
            kind[known] = kind.get(known, 0.0) + (cost / total if total else 0.0)
        ordered = sorted(found.items(), key=lambda pair: -math.fsum(pair[1].values()))
        return dict(ordered)

    # -- For people and programs.

    def _title(self) -> str:
        return (
            f"{self.model} on {self.platform}, batch {self.batch}: {self.prompt_tokens:,} prompt + "
            f"{self.new_tokens:,} new tokens"
        )

    def _figures(self) -> list[str]:
        found = []
        if self.runtime_ms is not None and self.ttft_ms is not None:
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
        rows = [("prefill", self.ttft_ms, _sum(each.energy_mj for each in self._prompts))]
        if steps is not None:
            rounds = "steps" if self.draft is None else "rounds"
            label = f"decode, {len(steps):,} {rounds}"
            rows.append((label, _known(steps.runtime_ms), _known(steps.energy_mj)))
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
                f"({show('runtime', latency.first)} to {show('runtime', latency.last)})"
            )
        per = [] if rate is None else [f"{rate:,.0f} tokens/s"]
        if self.energy_mj_per_token is not None:
            per.append(f"{show('energy', self.energy_mj_per_token)} a token")
        lines.append(f"  {', '.join(per)}")
        for kind, behind in self.shares().items():
            parts = ", ".join(
                f"{show_percent(share)} {name}"
                for name, share in sorted(behind.items(), key=lambda pair: -pair[1])
            )
            lines.append(f"  {kind:12} {show_percent(math.fsum(behind.values())):>6}  {parts}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, object]:
        """Everything but layers, in JSON's types; ms, mJ, W."""
        steps = self.decode
        return {
            "model": self.model,
            "platform": self.platform,
            "platform_sha256": self.platform_sha256,
            "batch": self.batch,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "runtime_ms": self.runtime_ms,
            "energy_mj": self.energy_mj,
            "power_w": self.power_w,
            "energy_basis": self.energy_basis,
            "energy_mj_per_token": self.energy_mj_per_token,
            "tokens_per_second": self.tokens_per_second,
            "ttft_ms": self.ttft_ms,
            "itl_ms": None if self.itl_ms is None else self.itl_ms._asdict(),
            "runtime_interval_ms": self.runtime_interval_ms,
            "energy_interval_mj": self.energy_interval_mj,
            "power_interval_w": self.power_interval_w,
            "prefill": {
                "runtime_ms": self.ttft_ms,
                "energy_mj": _sum(each.energy_mj for each in self._prompts),
            },
            "decode": None
            if steps is None
            else {
                "steps": len(steps),
                "traces": steps.traces,
                "cached": list(steps.cached),
                "runtime_ms": list(steps.runtime_ms),
                "energy_mj": list(steps.energy_mj),
            },
            "draft": None if self.draft is None else self.draft._asdict(),
            "shares": self.shares(),
            "notes": list(self.notes),
        }


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None where a value is not known."""
    known = list(values)
    if None in known:
        return None
    return math.fsum(value for value in known if value is not None)


def _known(values: Sequence[float]) -> float | None:
    """The sum of a step's figures; None where the platform does not know them."""
    return math.fsum(values) if values else None


def _shown(quantity: Any, value: float | None) -> str:
    return "" if value is None else show(quantity, value)


# -- Pricing.


class _Ledger:
    """Layers of different configurations, and the calls that are made of them."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._places: dict[Any, int] = {}

    def place(self, layer: Layer) -> int:
        found = self._places.setdefault(layer.configuration, len(self.layers))
        if found == len(self.layers):
            self.layers.append(layer)
        return found

    def places(self, layers: Iterable[Layer]) -> list[int]:
        return [self.place(layer) for layer in layers]


@dataclass(frozen=True, slots=True)
class _Call:
    """Some layers of a ledger, each as often as ``counts`` says; ``layers`` of them in all."""

    places: tuple[int, ...]
    counts: tuple[int, ...]
    layers: int


class _Steps:
    """The steps of one model at any cached length, as calls of a ledger."""

    def __init__(self, ledger: _Ledger, stretches: Sequence[Stretch]) -> None:
        self.ledger = ledger
        self.stretches = stretches
        self._fixed: dict[int, tuple[list[int], list[int]]] = {}

    def call(self, cached: int) -> _Call:
        stretch = next(each for each in self.stretches if each.first <= cached <= each.last)
        fixed = self._fixed.get(stretch.first)
        if fixed is None:
            pairs = stretch.fixed_counts
            places = self.ledger.places(layer for layer, _ in pairs)
            fixed = self._fixed[stretch.first] = (places, [count for _, count in pairs])
        grown = stretch.growing_counts
        return _Call(
            (*fixed[0], *self.ledger.places(each.at(cached) for each, _ in grown)),
            (*fixed[1], *(count for _, count in grown)),
            len(stretch.layers),
        )


def generate(
    model: Any,
    /,
    *,
    prompt: Any,
    new_tokens: int,
    batch: int = 1,
    platform: Platform | str | Path | None = None,
    draft: Any = None,
    draft_tokens: int = 4,
    acceptance: float = 0.8,
    engine: Engine = "serving",
    experts: Experts = "uniform",
    step: Step | None = None,
    estimator: str = BEST,
) -> Generation:
    """Predict what generating text costs: the prompt, and every token after it.

    The model is traced on tensors without data, so that one on the meta device takes no memory.
    Each step is priced at the cached length that it meets, exactly in configuration; a handful of
    traces tells them all.

    Parameters
    ----------
    model
        A causal language model of transformers; or any module, with ``step``.
    prompt
        Tokens of each sample's prompt; or the prompt's inputs, a tensor of ids ``(batch, tokens)``
        or a mapping of named inputs.
    new_tokens
        Tokens to generate for each sample. The prompt's call yields the first, each step one more.
    batch
        Samples that are generated together; where ``prompt`` has inputs, theirs.
    platform
        A loaded platform, a shipped platform's name, or the path of a platform file.
    draft
        A second, smaller model: speculative decoding. Of its ``draft_tokens`` proposals a round,
        each is accepted with probability ``acceptance``, so that a round yields
        ``(1 - acceptance^(draft_tokens + 1)) / (1 - acceptance)`` tokens in the mean (Leviathan,
        Kalman, Matias: *Fast Inference from Transformers via Speculative Decoding*, ICML 2023,
        equation 1).
    engine
        ``serving`` (default): as engines such as vLLM run it. The cache is preallocated, and only
        new keys and values are written; attention is a kernel that reads grouped keys without a
        mask; RMS norms, rotary embeddings, gated activations and experts are one kernel each.
        ``eager``: what the model's own code says, with transformers' cache, which is copied at
        every step.
    experts
        Distinct experts that the tokens of one call choose, in a mixture: ``uniform`` (default), as
        many as they would if all were equally likely; a number; or a share (a float up to 1).
    step
        Of a model that is not transformers': ``step(model, cached, batch)`` returns the inputs of
        the step after ``cached`` tokens, caches included: a tensor, a tuple or a mapping. Tensors
        on the meta device take no memory.
    estimator
        As :func:`~pytest_neuralpower.predict` takes it.

    Returns
    -------
    Generation
        Energy (mJ), runtime (ms) and power (W) of the whole and per token, time to first token,
        inter-token latency, and what stands behind them.

    Raises
    ------
    TraceError
        The model cannot be traced, or it is not known how it decodes.
    PlatformError
        The platform is unknown, or cannot price one of the layers.
    OptionError
        An argument is out of range.
    """
    if platform is None:
        raise PlatformError(
            "generate() needs platform=, a name or a path; "
            f"shipped platforms: {', '.join(list_platforms())}"
        )
    _check(new_tokens=new_tokens, batch=batch, draft_tokens=draft_tokens)
    if type(prompt) is int:
        _check(prompt=prompt)
    if not 0 <= acceptance <= 1:
        raise OptionError(f"generate: acceptance={acceptance!r} must be a probability, 0 to 1")
    loaded = priced_by(as_platform(platform), estimator)
    with collector_paused():
        from pytest_neuralpower.tracing.decoding import ENGINES, Language  # noqa: PLC0415 - torch

        if engine not in ENGINES:
            raise OptionError(f"generate: engine={engine!r}: allowed: {', '.join(ENGINES)}")
        options: Any = {"engine": engine, "experts": experts}
        target = Language(model, prompt, batch=batch, step=step, **options)
        second = None
        if draft is not None:
            if step is not None:
                raise OptionError("generate: draft= needs models of transformers, without step=")
            second = Language(draft, prompt, batch=batch, **options)
        speculation = (second, draft_tokens, acceptance) if second is not None else None
        return _generation(loaded, target, new_tokens, speculation)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise OptionError(f"generate: {name}={value!r} must be a whole number from 1")


def _generation(
    platform: Platform,
    target: Language,
    new_tokens: int,
    speculative: tuple[Language, int, float] | None,
) -> Generation:
    draft, draft_tokens, acceptance = speculative or (None, 0, 0.0)
    models = [target] if draft is None else [target, draft]
    prompts = [each.prefill() for each in models]
    speculation = None
    per_round = 1.0
    if draft is not None:
        per_round = expected_tokens(draft_tokens, acceptance)
        speculation = Draft(prompts[1].model, draft_tokens, acceptance, per_round)
    rounds = math.ceil((new_tokens - 1) / per_round - 1e-9)
    cached = tuple(target.tokens + math.floor(number * per_round) for number in range(rounds))
    ledger = _Ledger()
    prompt_calls = [_whole_call(ledger, each.layers) for each in prompts]
    calls: list[list[_Call]] = []
    if cached:
        queries = 1 if draft is None else draft_tokens + 1
        steps = _steps(ledger, target, cached[0], cached[-1], queries)
        calls = [[steps.call(length)] for length in cached]
        if draft is not None:
            more = draft_tokens - 1
            proposals = _steps(ledger, draft, cached[0], cached[-1] + more, 1)
            for length, round_calls in zip(cached, calls, strict=True):
                lengths = range(length, length + draft_tokens)
                round_calls += [proposals.call(each) for each in lengths]
    distinct = platform.predict(ledger.layers)
    priced = _Prices(distinct)
    counts = priced.counts(call for round_calls in calls for call in round_calls)
    used = np.flatnonzero(counts)
    decode = None
    if calls:
        figures = [priced.round(each) for each in calls]
        decode = Decoding(
            cached,
            () if distinct.runtime_ms is None else tuple(runtime for runtime, _ in figures),
            () if distinct.energy_mj is None else tuple(energy for _, energy in figures),
            tuple([distinct.layers[place] for place in used.tolist()]),
            tuple(counts[used].astype(int).tolist()),
            sum(each.traces for each in models) - len(models),
        )
    predictions = [platform.predict(each) for each in prompts]
    total = counts + priced.counts(prompt_calls)
    fields: dict[str, Any] = {}
    if distinct.errors is not None:
        launched = sum(each.layers for each in prompt_calls)
        launched += sum(each.layers for some in calls for each in some)
        errors = distinct.errors.times(total)
        fields = dict(call_intervals(errors, platform, distinct.host, layers=launched))
        del fields["errors"]
    notes = [note for each in predictions for note in each.notes]
    if draft is not None:
        notes.append(
            f"Speculative: {draft_tokens} proposals a round, each accepted with probability "
            f"{acceptance:g}: {per_round:.3g} tokens a round."
        )
    return Generation(
        model=prompts[0].model,
        platform=distinct.platform,
        platform_sha256=distinct.platform_sha256,
        batch=target.batch,
        prompt_tokens=target.tokens,
        new_tokens=new_tokens,
        prefill=predictions[0],
        decode=decode,
        draft=speculation,
        draft_prefill=predictions[1] if draft is not None else None,
        notes=tuple(dict.fromkeys(notes)),
        energy_basis=distinct.energy_basis,
        estimator=distinct.estimator,
        tier=platform.tiers.get("runtime", ""),
        host=distinct.host,
        **fields,
    )


def expected_tokens(proposals: int, acceptance: float) -> float:
    """Tokens that one round of speculative decoding yields in the mean.

    ``(1 - a^(k + 1)) / (1 - a)`` for ``k`` proposals, each accepted with probability ``a``, the
    token of the verifying model included (Leviathan et al., ICML 2023, equation 1).
    """
    if acceptance == 1:
        return float(proposals + 1)
    return float((1 - acceptance ** (proposals + 1)) / (1 - acceptance))


def _whole_call(ledger: _Ledger, layers: Sequence[Layer]) -> _Call:
    places = ledger.places(layers)
    return _Call(tuple(places), (1,) * len(places), len(places))


def _steps(ledger: _Ledger, model: Language, first: int, last: int, queries: int) -> _Steps:
    from pytest_neuralpower.tracing.decoding import stretches  # noqa: PLC0415 - imports torch

    def layers(cached: int) -> Sequence[Layer]:
        return model.step(cached, queries).layers

    return _Steps(ledger, stretches(layers, first, last, model.bends))


class _Prices:
    """Calls made of layers that are priced once."""

    def __init__(self, distinct: Prediction) -> None:
        self.host = distinct.host
        self.runtime = np.array([each.runtime_ms or 0.0 for each in distinct.layers])
        self.energy = np.array([each.energy_mj or 0.0 for each in distinct.layers])

    def counts(self, calls: Iterable[_Call]) -> FloatArray:
        """How often each layer runs in all of them."""
        total = np.zeros(len(self.runtime))
        for call in calls:
            np.add.at(total, list(call.places), call.counts)
        return total

    def round(self, calls: Sequence[_Call]) -> tuple[float, float]:
        """Runtime (ms) and energy (mJ) of calls one after the other, waiting included."""
        runtime = energy = 0.0
        for call in calls:
            places, counts = list(call.places), np.array(call.counts, dtype=np.float64)
            device_ms = float(self.runtime[places] @ counts)
            energy += float(self.energy[places] @ counts)
            if self.host is not None:
                energy += self.host.waiting_mj(device_ms, call.layers)
            found = device_ms
            if self.host is not None:
                found = self.host.total_ms(device_ms, call.layers) or 0.0
            runtime += found
        return runtime, energy
