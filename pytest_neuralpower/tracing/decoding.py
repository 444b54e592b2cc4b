"""The layers of a language model's prompt, and of every step after it, from a handful of traces.

A decoding step changes with the tokens that are cached before it in few places: attention reads
more keys, a mask or a copy of the cache grows. There, every size is an affine function of the
cached length, between the lengths where a sliding window fills. Such functions are read off two
traces, and a third one between them must agree; where it does not, the range is halved.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from pytest_neuralpower.errors import CompressError, TraceError
from pytest_neuralpower.layers import (
    SAMPLE_TOP_P,
    CacheDtype,
    Engine,
    Experts,
    Layer,
    Quantization,
    Sampling,
    TensorSpec,
    Trace,
)
from pytest_neuralpower.model_source import Call, as_call
from pytest_neuralpower.tracing.serving_fusion import as_served, quantized
from pytest_neuralpower.tracing.torch_private import ORIGINAL, children_of
from pytest_neuralpower.tracing.tracer import trace

#: Makes the inputs of one step of a model with a cache of its own: ``step(model, cached, batch)``
#: returns them as a tensor, as a tuple of positional or as a mapping of named ones.
Step: TypeAlias = Callable[[Any, int, int], Any]


# -- Sizes as functions of the cached length.

Numbers: TypeAlias = tuple[int, ...]


def _numbers(layer: Layer) -> Numbers:
    """Every size of a layer, and every whole number among its parameters."""
    found: list[int] = []
    for tensors in (layer.inputs, layer.weights, layer.outputs):
        for shape, _ in tensors:
            found += shape
    for _, value in layer.params:
        if type(value) is int:
            found.append(value)
        elif type(value) is tuple:
            found += value
    return tuple(found)


def _frame(layer: Layer) -> tuple[Any, ...]:
    """Everything of a layer but its :func:`_numbers`."""
    tensors = tuple(
        (len(shape), dtype)
        for group in (layer.inputs, layer.weights, layer.outputs)
        for shape, dtype in group
    )
    params = tuple(
        (name, len(value) if type(value) is tuple else None if type(value) is int else value)
        for name, value in layer.params
    )
    return (layer.kind, layer.op, layer.path, layer.dtype, len(layer.inputs), tensors, params)


def _with_numbers(layer: Layer, numbers: Sequence[int]) -> Layer:
    """The layer with other sizes, in the order of :func:`_numbers`."""
    start = 0

    def taken(count: int) -> Numbers:
        nonlocal start
        start += count
        return tuple(numbers[start - count : start])

    def resized(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(taken(len(shape)), dtype) for shape, dtype in tensors)

    inputs, weights, outputs = map(resized, (layer.inputs, layer.weights, layer.outputs))
    params = tuple(
        (name, taken(1)[0])
        if type(value) is int
        else (name, taken(len(value)) if isinstance(value, tuple) else value)
        for name, value in layer.params
    )
    return replace(layer, inputs=inputs, weights=weights, outputs=outputs, params=params)


#: Traces from which the steps of one generation are read off.
MOST_TRACES: Final = 64


class Growing(NamedTuple):
    """A layer that depends on the cached length: sizes at ``start``, and what one token adds."""

    layer: Layer
    start: int
    slopes: Numbers

    def at(self, cached: int) -> Layer:
        """The layer of a step after ``cached`` tokens."""
        more = cached - self.start
        numbers = [
            number + slope * more
            for number, slope in zip(_numbers(self.layer), self.slopes, strict=True)
        ]
        return _with_numbers(self.layer, numbers)


@dataclass(frozen=True)
class Stretch:
    """Steps whose layers are affine in the cached length.

    Attributes
    ----------
    first, last
        Cached tokens before the first and the last of them.
    layers
        Of the first step, in order.
    growing
        By place in ``layers``: those that depend on the length.
    exact
        False where a later step stands for them.
    """

    first: int
    last: int
    layers: tuple[Layer, ...]
    growing: Mapping[int, Growing]
    exact: bool = True

    def at(self, cached: int) -> tuple[Layer, ...]:
        """The layers of the step after ``cached`` tokens, in order."""
        grown = {place: each.at(cached) for place, each in self.growing.items()}
        return tuple([grown.get(place, layer) for place, layer in enumerate(self.layers)])

    @cached_property
    def fixed_counts(self) -> tuple[tuple[Layer, int], ...]:
        """One layer of each configuration that does not change, and how many a step has."""
        places = (place for place in range(len(self.layers)) if place not in self.growing)
        return _counted((self.layers[place].configuration, self.layers[place]) for place in places)

    @cached_property
    def growing_counts(self) -> tuple[tuple[Growing, int], ...]:
        """The same of those that change alike."""
        return _counted(
            ((each.layer.configuration, each.slopes), each) for each in self.growing.values()
        )


def _counted(items: Iterable[tuple[Any, Any]]) -> tuple[tuple[Any, int], ...]:
    """The first of each key's values, and how many there are."""
    firsts: dict[Any, Any] = {}
    counts: Counter[Any] = Counter()
    for key, value in items:
        firsts.setdefault(key, value)
        counts[key] += 1
    return tuple((value, counts[key]) for key, value in firsts.items())


def stretches(
    traced: Callable[[int], Sequence[Layer]],
    first: int,
    last: int,
    bends: Iterable[int] = (),
    limit: int = MOST_TRACES,
) -> tuple[Stretch, ...]:
    """The layers of every step, from as few traces as tell them.

    Parameters
    ----------
    traced
        The layers of the step after so many cached tokens.
    first, last
        Cached tokens before the first and the last step.
    bends
        Lengths at which sizes may begin to grow otherwise: full windows.
    limit
        Traces after which the steps of a range that is still uneven are taken to be the next one
        that was traced: sizes that jump every few tokens would be traced at each.
    """
    starts = sorted({first, *(bend for bend in bends if first < bend <= last)})
    ends = [start - 1 for start in starts[1:]] + [last]
    known: dict[int, tuple[Layer, ...]] = {}

    def layers(cached: int) -> tuple[Layer, ...]:
        if cached not in known:
            known[cached] = tuple(traced(cached))
        return known[cached]

    found: list[Stretch] = []
    waiting = [(low - high, low, high) for low, high in zip(starts, ends, strict=True)]
    heapify(waiting)
    while waiting:  # the longest first
        _, low, high = heappop(waiting)
        middle = (low + high) // 2
        if len(known) >= limit:
            after = min(cached for cached in known if cached >= high)
            found.append(Stretch(low, high, known[after], {}, exact=low == after))
            continue
        stretch = _fit(layers(low), layers(high), low, high)
        if stretch is not None and (high - low < 2 or stretch.at(middle) == layers(middle)):
            found.append(stretch)
        else:
            for start, end in ((low, middle), (middle + 1, high)):
                heappush(waiting, (start - end, start, end))
    return tuple(sorted(found, key=lambda stretch: stretch.first))


def _fit(start: tuple[Layer, ...], end: tuple[Layer, ...], first: int, last: int) -> Stretch | None:
    """The straight lines through two steps; None where they do not have the same layers."""
    if len(start) != len(end):
        return None
    growing = {}
    for place, (low, high) in enumerate(zip(start, end, strict=True)):
        if low == high:
            continue
        if _frame(low) != _frame(high):
            return None
        slopes = []
        for one, other in zip(_numbers(low), _numbers(high), strict=True):
            slope, rest = divmod(other - one, last - first)
            if rest:
                return None
            slopes.append(slope)
        growing[place] = Growing(low, first, tuple(slopes))
    return Stretch(first, last, start, growing)


# -- Models.


class LanguageModel:
    """A language model, and how its prompt and its steps are traced.

    Parameters
    ----------
    model
        Of transformers, on any device; or any module, with ``step``.
    prompt
        Tokens of each sample's prompt, or the prompt's inputs.
    batch
        Samples; what ``prompt`` has where that is a tensor or a mapping of them.
    engine
        ``serving`` (default): kernels as vLLM runs them, keys and values written in place.
        ``eager``: the model's code, with transformers' cache, which is copied at every step.
    sampling, quantization, kv_cache_dtype, experts
        As :func:`pytest_neuralpower.generate` has them, by default ``top_p``, ``none``, ``auto``
        and ``uniform``.
    step
        See :data:`Step`; None (default) for models of transformers.

    Attributes
    ----------
    batch, tokens
        Samples, and tokens of each sample's prompt.
    steps_traced
        Steps that were traced so far.

    Raises
    ------
    TraceError
        It is not known how the model decodes, or what its prompt is.
    """

    def __init__(
        self,
        model: nn.Module,
        prompt: Any,
        *,
        batch: int,
        engine: Engine = "serving",
        sampling: Sampling = "top_p",
        quantization: Quantization = "none",
        kv_cache_dtype: CacheDtype = "auto",
        experts: Experts = "uniform",
        step: Step | None = None,
    ) -> None:
        self.model = model if step is not None else _unwrapped(model)
        self.sampling = sampling
        self.quantization = quantization
        self.kv_cache_dtype = kv_cache_dtype
        self.engine = engine
        self.experts = experts
        self.step_inputs = step
        self.given = None
        if type(prompt) is not int:
            self.given = _as_call(prompt, "is neither a number of tokens nor inputs")
        self.batch: int
        self.tokens: int
        self.batch, self.tokens = (batch, prompt) if self.given is None else _sizes(self.given)
        self.steps_traced = 0
        #: Whether some steps stand for others that may differ.
        self.uneven = False
        self._states: Any = None
        if step is None:
            _check_transformers(self.model)
            if self.given is not None:
                self.given = Call((), _named(self.model, self.given))
        elif self.given is None:
            raise TraceError(
                f"generate: prompt={prompt} with step=: give the prompt's inputs, a tensor or a "
                "mapping of them; only transformers' models take a number of tokens alone"
            )

    def notes(self, new_tokens: int) -> tuple[str, ...]:
        """What a user should know of a generation of so many tokens."""
        name, found = type(self.model).__name__, []
        if self.uneven:
            found.append(
                f"The cache of {name} grows in jumps: {MOST_TRACES} of its steps were traced, and "
                "the others cost what the next of them does"
            )
        config: Any = getattr(self.model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else None
        limit = getattr(text, "max_position_embeddings", None)
        positions = self.tokens + new_tokens - 1
        if self.step_inputs is None and type(limit) is int and positions > limit:
            found.append(
                f"{positions:,} positions are more than {name} was made for "
                f"(max_position_embeddings={limit})"
            )
        return tuple(found)

    @property
    def bends(self) -> tuple[int, ...]:
        """Cached lengths at which a step may begin to change otherwise."""
        if self.step_inputs is not None:
            return ()
        from pytest_neuralpower.tracing.transformers_models import windows  # noqa: PLC0415

        return windows(self.model)

    def prefill(self) -> Trace:
        """The layers of the whole prompt's one call; logits of its last position alone."""
        args, kwargs = self.given or Call((), {"input_ids": _ids(self.batch, self.tokens)})
        if self.step_inputs is not None:
            return self._traced(args, kwargs)
        cache = self._cache(0)
        found = self._called({**self._last_logits(), **kwargs}, cache)
        from pytest_neuralpower.tracing.transformers_models import is_filled  # noqa: PLC0415

        if not is_filled(cache):
            raise TraceError(
                f"generate: {type(self.model).__name__} leaves its cache empty: {_PASS_STEP}"
            )
        self._states = cache
        return found

    def step(self, cached: int, queries: int = 1) -> Trace:
        """The layers of one step of ``queries`` tokens a sample, after ``cached`` ones."""
        self.steps_traced += 1
        if self.step_inputs is not None:
            inputs = self.step_inputs(self.model, cached, self.batch)
            return self._traced(*_as_call(inputs, "is nothing that step= may return"))
        kwargs = {"input_ids": _ids(self.batch, queries)}
        masked = self.given is not None and "attention_mask" in self.given.kwargs
        if self.engine == "eager" and masked:
            seen = cached + queries
            kwargs["attention_mask"] = torch.ones((self.batch, seen), dtype=torch.int64)
        return self._called(kwargs, self._cache(cached))

    def _last_logits(self) -> dict[str, int]:
        names = _forward_names(self.model)
        return {name: 1 for name in ("logits_to_keep", "num_logits_to_keep") if name in names}

    def _cache(self, cached: int) -> Any:
        from pytest_neuralpower.tracing import transformers_models as ours  # noqa: PLC0415

        if self.engine == "serving" and ours.is_pageable(self.model):
            return ours.paged_cache(self.model, cached, self._states)
        cache = ours.empty_cache(self.model)
        if cached:  # as the model's own code fills it
            self._called({"input_ids": _ids(self.batch, cached)}, cache)
        return cache

    def _called(self, kwargs: Mapping[str, Any], cache: Any) -> Trace:
        name = next(
            (each for each in ("cache", "past_key_values") if each in _forward_names(self.model)),
            None,
        )
        if name is None:
            raise TraceError(f"generate: {type(self.model).__name__} takes no cache: {_PASS_STEP}")
        return self._traced((), {**kwargs, name: cache, "use_cache": True})

    def _traced(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Trace:
        if self.step_inputs is not None or self.engine == "eager":
            found = trace(self.model, *args, **kwargs)
        else:
            from pytest_neuralpower.tracing.transformers_models import (  # noqa: PLC0415
                engine_kernels,
            )

            with engine_kernels(self.model):
                found = as_served(trace(self.model, *args, **kwargs))
            found = self._drawn(
                quantized(
                    found,
                    products=self.quantization == "fp8",
                    cache=self.kv_cache_dtype == "fp8",
                )
            )
        return found.with_experts(self.experts)

    def _drawn(self, traced: Trace) -> Trace:
        """The trace with what draws a token of each row of logits, its last layer's result."""
        logits = traced.layers[-1].outputs[0].shape
        rows, words = math.prod(logits[:-1]), logits[-1]
        greedy = self.sampling == "greedy"
        draws = Layer(
            "reduction" if greedy else "uncovered",
            "argmax" if greedy else SAMPLE_TOP_P,
            "",
            (TensorSpec((rows, words), "float32"),),
            (),
            (TensorSpec((rows,), "int64"),),
            "int64",
        )
        reads = (*traced.reads, (len(traced) - 1,)) if traced.reads else ()
        return dataclasses.replace(traced, layers=(*traced.layers, draws), reads=reads)


def _ids(batch: int, tokens: int) -> Tensor:
    return torch.zeros((batch, tokens), dtype=torch.int64)


def _as_call(inputs: Any, refusal: str) -> Call:
    try:
        return as_call(inputs)
    except CompressError:
        raise TraceError(
            f"generate: a {type(inputs).__name__} {refusal}: give a tensor, a tuple of positional "
            "inputs, or a mapping of named ones"
        ) from None


def _named(model: nn.Module, call: Call) -> Mapping[str, Any]:
    """A prompt's inputs by name; embeddings may stand where a model of transformers has its ids."""
    names = _forward_names(model)
    first = call.args[0] if call.args else None
    if isinstance(first, Tensor) and first.is_floating_point():
        names = ("inputs_embeds", *names[1:])
    return {**dict(zip(names, call.args, strict=False)), **call.kwargs}


def _sizes(call: Call) -> tuple[int, int]:
    """Samples and tokens of a prompt's inputs."""
    named = [call.kwargs[name] for name in ("input_ids", "inputs_embeds") if name in call.kwargs]
    for tensor in (*named, *call.args, *call.kwargs.values()):
        if isinstance(tensor, Tensor) and tensor.ndim >= 2:
            if 0 in tensor.shape[:2]:
                raise TraceError(
                    f"generate: the prompt's inputs, {tuple(tensor.shape)}, have no token"
                )
            return int(tensor.shape[0]), int(tensor.shape[1])
    raise TraceError(
        "generate: the prompt's inputs have no tensor of (batch, tokens): give input_ids"
    )


def _forward_names(model: Any) -> tuple[str, ...]:
    """The parameters of the model's forward, in order."""
    return tuple(inspect.signature(_base(model).forward).parameters)


def _base(model: Any) -> Any:
    """What an adapter of PEFT wraps; the model itself without."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _unwrapped(model: Any) -> Any:
    """What ``torch.compile`` or data parallelism wraps; the model itself without."""
    while isinstance(model, nn.Module):
        if ORIGINAL in children_of(model):
            model = children_of(model)[ORIGINAL]
        elif type(model) in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    return model


@contextmanager
def in_eval_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """The models in eval mode, in which they generate; every module as it was afterwards."""
    known = [model for model in models if isinstance(model, nn.Module)]
    training = {module for model in known for module in model.modules() if module.training}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


#: What a user does of a model whose decoding is not known.
_PASS_STEP: Final = (
    "pass step=, a function of (model, cached, batch) that returns the inputs of the step after "
    "`cached` tokens, and the prompt's inputs as prompt="
)


def _gives_logits(model: nn.Module) -> bool:
    """Whether a model of transformers has a head for tokens, or does not tell."""
    can, head = (getattr(model, name, None) for name in ("can_generate", "get_output_embeddings"))
    return can is None or head is None or bool(can() or head())


def _check_transformers(model: Any) -> None:
    """Raise TraceError where only ``step`` can tell how the model decodes."""
    if not isinstance(model, nn.Module):
        called = getattr(model, "__name__", type(model).__name__)
        raise TraceError(f"generate needs a model, not {called}: call what builds it")
    name = type(model).__name__
    config = getattr(model, "config", None)
    if "transformers" not in sys.modules or not hasattr(config, "get_text_config"):
        raise TraceError(f"generate: {name} is not a model of transformers: {_PASS_STEP}")
    if getattr(config, "is_encoder_decoder", False):
        raise TraceError(f"generate: {name} has an encoder of its own: {_PASS_STEP}")
    if not _gives_logits(_base(model)):
        raise TraceError(
            f"generate: {name} has no head that gives logits: take the causal "
            "language model (AutoModelForCausalLM), or pass step="
        )
    try:
        importlib.import_module("pytest_neuralpower.tracing.transformers_models")
    except ImportError as error:
        version = sys.modules["transformers"].__version__
        raise TraceError(
            f"generate: transformers {version} is too old ({error}): "
            "`pip install --upgrade transformers`, or pass step="
        ) from None
    if not getattr(_base(model), "_supports_default_dynamic_cache", lambda: True)():
        raise TraceError(f"generate: {name} has a cache of its own kind: {_PASS_STEP}")
