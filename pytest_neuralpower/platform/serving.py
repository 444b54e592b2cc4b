"""Predict what generating text costs: the prompt in one call, then a step for each token.

Every step is priced in its own configuration, at the cache's length that it meets; what is equal
in all of them is priced once (:mod:`pytest_neuralpower.tracing.decoding`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from pytest_neuralpower.collector import collector_paused
from pytest_neuralpower.errors import OptionError, PlatformError
from pytest_neuralpower.layers import CacheDtype, Engine, Quantization, Sampling
from pytest_neuralpower.platform.catalog import as_platform, list_platforms, priced_by
from pytest_neuralpower.platform.generation import Decoding, Draft, Generation
from pytest_neuralpower.platform.prediction import mean_power
from pytest_neuralpower.platform.price import BEST, CallIntervals, call_intervals
from pytest_neuralpower.text import printable

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Experts, Layer
    from pytest_neuralpower.platform.intervals import LayerErrors
    from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.tracing.decoding import LanguageModel, Step, Stretch


class _Ledger:
    """One layer of each configuration that any call has: what there is to price."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._indices: dict[Any, int] = {}

    def indices(self, layers: Iterable[Layer]) -> list[int]:
        """Of each layer, which of ``self.layers`` has its configuration."""
        indices = []
        for layer in layers:
            index = self._indices.setdefault(layer.configuration, len(self.layers))
            if index == len(self.layers):
                self.layers.append(layer)
            indices.append(index)
        return indices


class _Runs(NamedTuple):
    """What runs in a call: indices in the ledger, how often each runs, and the layer to name it by
    (of a layer that grows, the same at all cached lengths)."""

    indices: Sequence[int]
    counts: Sequence[int]
    named: Sequence[Layer]


class _ModelCall(NamedTuple):
    """One call of a model: ``fixed`` is the same object in all calls that have it in common, and
    ``grown`` what depends on the cached length."""

    fixed: _Runs
    grown: _Runs


class _Steps:
    """The steps of one model at any cached length, as calls of a ledger."""

    def __init__(self, ledger: _Ledger, stretches: Sequence[Stretch]) -> None:
        self.ledger = ledger
        self._known = [(stretch, self._runs(stretch.fixed_counts)) for stretch in stretches]

    def _runs(self, pairs: Sequence[tuple[Layer, int]]) -> _Runs:
        layers = [layer for layer, _ in pairs]
        return _Runs(self.ledger.indices(layers), [count for _, count in pairs], layers)

    def call(self, cached: int) -> _ModelCall:
        """The step after ``cached`` tokens."""
        stretch, fixed = next(
            known for known in self._known if known[0].first <= cached <= known[0].last
        )
        grown = stretch.growing_counts
        runs = _Runs(
            self.ledger.indices(each.at(cached) for each, _ in grown),
            [count for _, count in grown],
            [each.layer for each, _ in grown],
        )
        return _ModelCall(fixed, runs)


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
    sampling: Sampling = "top_p",
    quantization: Quantization = "none",
    kv_cache_dtype: CacheDtype = "auto",
    experts: Experts = "uniform",
    step: Step | None = None,
    estimator: str = BEST,
) -> Generation:
    """Predict what generating text costs: the prompt, and every token after it.

    The model is traced in eval mode on tensors without data, so that one on the meta device takes
    no memory.
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
        Samples that are generated together, 1 by default; where ``prompt`` has inputs, theirs.
    platform
        A loaded platform, a shipped platform's name, or the path of a platform file.
    draft
        A second, smaller model: speculative decoding. Of its ``draft_tokens`` proposals a round (4
        by default), each is accepted with probability ``acceptance`` (0.8), so that a round yields
        ``(1 - acceptance^(draft_tokens + 1)) / (1 - acceptance)`` tokens in the mean (Leviathan,
        Kalman, Matias: *Fast Inference from Transformers via Speculative Decoding*, ICML 2023,
        equation 1).
    engine
        ``serving`` (default): as engines such as vLLM run it. The cache is preallocated, and only
        new keys and values are written; attention is a kernel that reads grouped keys without a
        mask; projections of one tensor are joined, and RMS norms with the residual, rotary
        embeddings, gated activations and experts are one kernel each.
        ``eager``: what the model's own code says, with transformers' cache, which is copied at
        every step.
    sampling
        How a serving engine draws tokens. ``top_p`` (default, also top-k): as most models' own
        generation settings ask. ``greedy``: the largest.
    quantization
        ``fp8``: a serving engine multiplies linear layers and experts in 8-bit floats, and
        quantises their activations at each call; heads and routers stay as they are. ``none`` by
        default.
    kv_cache_dtype
        ``fp8``: a serving engine keeps keys and values in 8-bit floats, which steps read; a
        prompt's own attention stays as it is. ``auto`` (default): in the model's dtype.
    experts
        Distinct experts that the tokens of one call choose, in a mixture: ``uniform`` (default), as
        many as they would if all were equally likely; a number; or a share (a float up to 1).
    step
        Of a model that is not transformers': ``step(model, cached, batch)`` returns the inputs of
        the step after ``cached`` tokens, caches included: a tensor, a tuple or a mapping. Tensors
        on the meta device take no memory.
    estimator
        ``best`` (default) or ``neuralpower``, as :func:`~pytest_neuralpower.predict` takes it.

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
    counts = {"new_tokens": new_tokens, "batch": batch, "draft_tokens": draft_tokens}
    _check_counts(counts | ({"prompt": prompt} if type(prompt) is int else {}))
    if not isinstance(acceptance, (int, float)) or not 0 <= acceptance <= 1:
        raise OptionError(f"generate: acceptance={acceptance!r} must be a probability, 0 to 1")
    for name, value, allowed in (
        ("engine", engine, get_args(Engine)), ("sampling", sampling, get_args(Sampling)),
        ("quantization", quantization, get_args(Quantization)),
        ("kv_cache_dtype", kv_cache_dtype, get_args(CacheDtype)),
    ):  # fmt: skip
        if value not in allowed:
            raise OptionError(f"generate: {name}={value!r}: allowed: {', '.join(allowed)}")
    for name, value in (("quantization", quantization), ("kv_cache_dtype", kv_cache_dtype)):
        if value == "fp8" and (engine == "eager" or step is not None):
            raise OptionError(
                f"generate: {name}='fp8' needs engine='serving', without step=: only an engine "
                "quantises"
            )
    if draft is not None and step is not None:
        raise OptionError("generate: draft= needs models of transformers, without step=")
    if step is not None and not callable(step):
        raise OptionError(f"generate: step={step!r} must be a function of (model, cached, batch)")
    loaded = priced_by(as_platform(platform), estimator)
    with collector_paused():
        from pytest_neuralpower.tracing.decoding import (  # noqa: PLC0415 - imports torch
            LanguageModel,
            in_eval_mode,
        )

        language_model = partial(
            LanguageModel, prompt=prompt, batch=batch, engine=engine, sampling=sampling,
            quantization=quantization, kv_cache_dtype=kv_cache_dtype, experts=experts,
        )  # fmt: skip
        models = [language_model(model, step=step)]
        speculation = None
        if draft is not None:
            models.append(language_model(draft))
            per_round = expected_tokens(draft_tokens, acceptance)
            speculation = Draft(
                printable(type(draft).__name__), draft_tokens, acceptance, per_round
            )
        with in_eval_mode([each.model for each in models]):
            return _generation(loaded, models, new_tokens, speculation)


def _check_counts(counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise OptionError(f"generate: {name}={value!r} must be a whole number from 1")


def _generation(
    platform: Platform, models: Sequence[LanguageModel], new_tokens: int, draft: Draft | None
) -> Generation:
    """What the first model generates; the second one is the draft's."""
    target = models[0]
    traces = [each.prefill() for each in models]
    prompts = tuple(platform.predict(each) for each in traces)
    ledger = _Ledger()
    calls = [_whole_call(ledger, each.layers) for each in traces]
    cached = _rounds(target.tokens, new_tokens, draft)
    rounds = _round_calls(ledger, models, cached, draft)
    steps_traced = sum(each.steps_traced for each in models)
    distinct = platform.predict(ledger.layers)
    prices = _Prices(distinct, platform)
    steps = [call for each in rounds for call in each]
    decode = None
    if rounds:
        figures = [prices.round(each) for each in rounds]
        last = platform.predict(target.step(cached[-1], 1 if draft is None else draft.tokens + 1))
        decode = Decoding(
            cached,
            () if distinct.device_ms is None else tuple(runtime for runtime, _ in figures),
            () if distinct.energy_mj is None else tuple(energy for _, energy in figures),
            last,
            steps_traced,
            prices.intervals(steps).get("runtime_interval_ms"),
        )
    notes = [note for each in prompts for note in each.notes]
    notes += [note for each in models for note in each.notes(new_tokens)]
    if draft is not None:
        notes.append(
            f"Speculative: {draft.tokens} proposals a round, each accepted with probability "
            f"{draft.acceptance:g}: {draft.per_round:.3g} tokens a round."
        )
    return Generation(
        layers=(*(layer for each in prompts for layer in each.layers), *prices.layers(steps)),
        platform=distinct.platform,
        platform_sha256=distinct.platform_sha256,
        batch=target.batch,
        model=prompts[0].model,
        route=prompts[0].route,
        notes=tuple(dict.fromkeys(notes)),
        energy_basis=distinct.energy_basis,
        estimator=distinct.estimator,
        tokens=new_tokens * target.batch,
        prompt_tokens=target.tokens,
        new_tokens=new_tokens,
        prompts=prompts,
        decode=decode,
        draft=draft,
        tier=platform.tiers.get("runtime", ""),
        **prices.intervals([*calls, *steps]),
    )


def expected_tokens(proposals: int, acceptance: float) -> float:
    """Tokens that one round of speculative decoding yields in the mean.

    ``(1 - a^(k + 1)) / (1 - a)`` for ``k`` proposals, each accepted with probability ``a``, the
    token of the verifying model included (Leviathan et al., ICML 2023, equation 1).
    """
    if acceptance == 1:
        return float(proposals + 1)
    return float((1 - acceptance ** (proposals + 1)) / (1 - acceptance))


def _rounds(prompt: int, new_tokens: int, draft: Draft | None) -> tuple[int, ...]:
    """Tokens cached before each step after the prompt's call, or before each round."""
    if draft is None:
        return tuple(range(prompt, prompt + new_tokens - 1))
    count = math.ceil((new_tokens - 1) / draft.per_round - 1e-9)
    return tuple(prompt + math.floor(number * draft.per_round) for number in range(count))


def _round_calls(
    ledger: _Ledger, models: Sequence[LanguageModel], cached: Sequence[int], draft: Draft | None
) -> list[list[_ModelCall]]:
    """The calls of each step: of the model; and of the draft, one for each of its proposals."""
    if not cached:
        return []
    verified = 1 if draft is None else draft.tokens + 1
    target = _steps(ledger, models[0], cached[0], cached[-1], verified)
    calls = [[target.call(length)] for length in cached]
    if draft is not None:
        proposed = _steps(ledger, models[1], cached[0], cached[-1] + draft.tokens - 1, 1)
        for length, each in zip(cached, calls, strict=True):
            each += [proposed.call(length + number) for number in range(draft.tokens)]
    return calls


def _whole_call(ledger: _Ledger, layers: Sequence[Layer]) -> _ModelCall:
    runs = _Runs(ledger.indices(layers), [1] * len(layers), layers)
    return _ModelCall(runs, _Runs((), (), ()))


def _steps(ledger: _Ledger, model: LanguageModel, first: int, last: int, queries: int) -> _Steps:
    from pytest_neuralpower.tracing.decoding import stretches  # noqa: PLC0415 - imports torch

    def layers(cached: int) -> Sequence[Layer]:
        return model.step(cached, queries).layers

    found = stretches(layers, first, last, model.bends)
    model.uneven = not all(each.exact for each in found)
    return _Steps(ledger, found)


class _Prices:
    """Calls made of layers that are priced once."""

    def __init__(self, distinct: Prediction, platform: Platform) -> None:
        self.distinct = distinct
        self.platform = platform
        self._runtime = np.array([each.runtime_ms or 0.0 for each in distinct.layers])
        self._energy = np.array([each.energy_mj or 0.0 for each in distinct.layers])
        host = distinct.host
        self._launches = np.array(
            [1.0 if host is None else host.launches([each.layer]) for each in distinct.layers]
        )
        self._sums: dict[int, FloatArray] = {}

    def _sum(self, runs: _Runs) -> FloatArray:
        """Runtime (ms), energy (mJ) and launches."""
        indices, counts = list(runs.indices), np.array(runs.counts, dtype=np.float64)
        known = self._runtime, self._energy, self._launches
        return np.array([float(each[indices] @ counts) for each in known])

    def round(self, calls: Sequence[_ModelCall]) -> tuple[float, float]:
        """Runtime (ms) and energy (mJ) of calls one after the other, waiting included."""
        host = self.distinct.host
        runtime = energy = 0.0
        for call in calls:
            if id(call.fixed) not in self._sums:
                self._sums[id(call.fixed)] = self._sum(call.fixed)
            total = self._sums[id(call.fixed)] + self._sum(call.grown)
            device_ms, device_mj, launches = total.tolist()
            energy += device_mj
            if host is None:
                runtime += device_ms
            else:
                energy += host.waiting_mj(device_ms, launches)
                runtime += host.total_ms(device_ms, launches) or 0.0
        return runtime, energy

    def intervals(self, calls: Sequence[_ModelCall]) -> CallIntervals:
        """Of all calls together; empty on a platform without."""
        errors: LayerErrors | None = self.distinct.errors
        if errors is None:
            return CallIntervals()
        counts: FloatArray = np.zeros(len(self._runtime))
        for runs, times in _repeated(calls):
            np.add.at(counts, list(runs.indices), [count * times for count in runs.counts])
        launches = float(self._launches @ counts)
        fields = call_intervals(
            errors.times(counts), self.platform, self.distinct.host, launches=launches
        )
        del fields["errors"]  # of configurations, and so no line for each layer
        return fields

    def layers(self, calls: Sequence[_ModelCall]) -> list[LayerPrediction]:
        """What all runs of each layer take: one of a configuration, or of what grows."""
        runs_of: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        named: dict[Any, Layer] = {}
        for runs, times in _repeated(calls):
            for index, count, layer in zip(*runs, strict=True):
                key = layer.kind, layer.op, layer.path, self.distinct.layers[index].flags
                named.setdefault(key, layer)
                runs_of[key].append((index, count * times))
        return [self._joined(named[key], pairs) for key, pairs in runs_of.items()]

    def _joined(self, layer: Layer, runs: Sequence[tuple[int, int]]) -> LayerPrediction:
        one = self.distinct.layers[runs[0][0]]
        runtime = energy = None
        if one.runtime_ms is not None:
            runtime = math.fsum(self._runtime[index] * count for index, count in runs)
        if one.energy_mj is not None:
            energy = math.fsum(self._energy[index] * count for index, count in runs)
        return one._replace(
            layer=layer,
            runtime_ms=runtime,
            energy_mj=energy,
            power_w=mean_power(energy, runtime),
            runtime_interval_ms=None,
            energy_interval_mj=None,
            energy_parts_mj=None,
        )


def _repeated(calls: Sequence[_ModelCall]) -> Iterator[tuple[_Runs, int]]:
    """What runs in the calls, and in how many of them."""
    times = Counter(id(call.fixed) for call in calls)
    fixed = {id(call.fixed): call.fixed for call in calls}
    yield from ((runs, times[key]) for key, runs in fixed.items())
    yield from ((call.grown, 1) for call in calls if call.grown.indices)
