"""Language models of transformers: their caches without data, and their code as engines run it."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from pytest_neuralpower.tracing.rules.serving_kernels import attend, gate, rotate, store

# -- Caches that hold lengths.


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values where they are: only new ones are written.

    Parameters
    ----------
    cached
        Tokens that were seen before.
    window
        Tokens that one query sees at most; all by default.
    """

    def __init__(self, cached: int, window: int | None = None) -> None:
        super().__init__()
        self.cached = cached
        self.window = window
        self.is_initialized = cached > 0

    @property
    def is_sliding(self) -> bool:
        return self.window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to make."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        new = key_states.shape[-2]
        visible = self.get_mask_sizes(new)[0]
        self.cached += new
        self.is_initialized = True
        self.keys, self.values = store(key_states, value_states, visible)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        before = self.cached
        if self.window is not None:
            before = min(before, self.window - 1)
        return before + query_length, self.cached - before

    def get_seq_length(self) -> int:
        return self.cached

    def get_max_length(self) -> int:
        return -1


class PagedHybridLayer(PagedLayer, LinearAttentionLayer):  # type: ignore[misc]
    """One layer of attention beside a state space: paged keys, and states of one size."""

    def __init__(self, cached: int, window: int | None, states: int) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=states)
        PagedLayer.__init__(self, cached, window)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)


class _TracedCache(DynamicCache):  # type: ignore[misc]
    """A cache that a trace fills itself: it holds nothing of the caller's, so nothing is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _TracedCache:
        return self


def empty_cache(model: Any) -> _TracedCache:
    """transformers' own, which grows by copying."""
    return _TracedCache(config=model.config)


#: Layers of transformers' caches that hold all keys, or a window of them.
_KEYED: Final = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


def is_pageable(model: Any) -> bool:
    """Whether every layer has a paged form: one that compresses or indexes its keys has none."""
    known = (*_KEYED, LinearAttentionLayer, DummyLayer)
    return all(type(layer) in known for layer in empty_cache(model).layers)


def is_filled(cache: Any) -> bool:
    """Whether a call left anything in the cache that it was given."""
    return any(
        getattr(layer, "cached", 0)
        or getattr(layer, "keys", None) is not None
        or any(getattr(layer, "has_previous_state", {}).values())
        for layer in cache.layers
    )


def paged_cache(model: Any, cached: int, prompt: Any = None) -> _TracedCache:
    """A cache that has seen ``cached`` tokens.

    What does not grow is as the prompt's call left it in its cache, ``prompt``: states of linear
    attention and of state spaces, keys of an image, and layers that it did not call.
    """
    cache = empty_cache(model)
    seen = 0 if prompt is None else max(getattr(layer, "cached", 0) for layer in prompt.layers)
    for place, layer in enumerate(cache.layers):
        before = None if prompt is None else prompt.layers[place]
        if before is None:
            if type(layer) in _KEYED:
                cache.layers[place] = _paged(layer, cached)
            continue
        # Keys are replaced by a call, states are written in place.
        found = copy.copy(before) if type(before) is PagedLayer else copy.deepcopy(before)
        if isinstance(found, PagedLayer) and found.cached == seen:
            found.cached = cached
        cache.layers[place] = found
    if not cache.layers:  # the configuration does not tell them apart: all are alike
        cache.layer_class_to_replicate = lambda: PagedLayer(cached)
    return cache


def _paged(layer: Any, cached: int) -> PagedLayer:
    window = getattr(layer, "sliding_window", None)
    if isinstance(layer, LinearAttentionLayer):
        return PagedHybridLayer(cached, window, layer.number_of_states)
    return PagedLayer(cached, window)


def windows(model: Any) -> tuple[int, ...]:
    """Sizes of the model's sliding windows."""
    found = {getattr(layer, "sliding_window", None) for layer in empty_cache(model).layers}
    return tuple(sorted(int(size) for size in found if size))


# -- The model's code as engines run it.

#: Name of our functions among transformers' implementations.
_NAME: Final = "neuralpower_serving"


def _attention(
    _: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **options: Any
) -> tuple[Tensor, None]:
    """As transformers calls an attention implementation: queries ``(B, H, L, E)``, keys and values
    ``(B, Hkv, S, E)``; returns ``(B, L, H, Ev)``, and no weights."""
    return attend(query, key, value, options.get("sliding_window")), None


def _experts(module: Any, hidden: Tensor, chosen: Tensor, _: Tensor) -> Tensor:
    """As transformers calls an experts implementation: rows ``(tokens, width)``, and the ``k``
    experts that each has ``chosen``, ``(tokens, k)``. The kernels gather their rows themselves."""
    tokens, ways = chosen.shape
    order, _ = chosen.reshape(-1).sort()  # which rows each expert has
    rows = hidden.new_empty((tokens * ways, hidden.shape[-1]))
    first = module.gate_up_proj if module.has_gate else module.up_proj
    raised = _product(module, rows, first, order)
    if module.has_bias:
        raised = raised + (module.gate_up_proj_bias if module.has_gate else module.up_proj_bias)[0]
    if not module.has_gate:
        raised = module.act_fn(raised)
    elif type(module)._apply_gate.__qualname__ == "_default_apply_gate":
        gates, values = raised.chunk(2, dim=-1)
        raised = gate(gates, values, _activation_name(module.act_fn))
    else:
        raised = module._apply_gate(raised)
    lowered = _product(module, raised, module.down_proj, order)
    if module.has_bias:
        lowered = lowered + module.down_proj_bias[0]
    return lowered.view(tokens, ways, -1).sum(dim=1)  # each scaled on its way out of the product


def _product(module: Any, rows: Tensor, matrices: Tensor, order: Tensor) -> Tensor:
    """Rows by their experts' matrices ``(E, out, in)``, or transposed where the module says so."""
    if not module.is_transposed:
        matrices = matrices.transpose(-2, -1)
    return functional.grouped_mm(rows.to(matrices.dtype), matrices, offs=order)


def _activation_name(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__).lower()
    return name.removesuffix("activation")


def _norm(self: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, tuple(self.weight.shape), self.weight)


def _bare_norm(_: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:])


def _gated_mlp(self: Any, hidden: Tensor) -> Tensor:
    name = _activation_name(self.act_fn)
    lowered: Tensor = self.down_proj(gate(self.gate_proj(hidden), self.up_proj(hidden), name))
    return lowered


def _joined_mlp(self: Any, hidden: Tensor) -> Tensor:
    gates, values = self.gate_up_proj(hidden).chunk(2, dim=-1)
    lowered: Tensor = self.down_proj(gate(gates, values, _activation_name(self.activation_fn)))
    return lowered


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> Any:
    return rotate(q, k, cos, sin)


#: What an RMS norm's forward may name: one that does more is left as it is.
_NORM_NAMES: Final = frozenset(
    ("dtype", "to", "torch", "float32", "pow", "mean", "rsqrt", "sqrt", "variance_epsilon", "eps",
     "weight", "_norm", "float", "type_as")
)  # fmt: skip
_FORWARDS: Final = {
    frozenset(("gate_proj", "up_proj", "act_fn", "down_proj")): _gated_mlp,
    frozenset(("gate_up_proj", "chunk", "activation_fn", "down_proj")): _joined_mlp,
}


def _fused_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """What an engine runs for this class's forward; None for its own.

    A class is known by the names its code uses: one that does anything else keeps its forward.
    """
    code = getattr(type(module).forward, "__code__", None)
    if code is None:
        return None
    names = frozenset(code.co_names)
    if type(module).__name__.endswith("RMSNorm"):
        weight = getattr(module, "weight", None)
        plain = names <= _NORM_NAMES and code.co_argcount == 2
        if plain and "weight" not in names:
            return _bare_norm
        return _norm if plain and isinstance(weight, Tensor) and weight.ndim == 1 else None
    return _FORWARDS.get(names)


#: Classes and registries are changed for all threads: two at a time would not restore them.
_CHANGING: Final = RLock()


@contextmanager
def engine_kernels(model: nn.Module) -> Iterator[None]:
    """Let the model's code call what a serving engine runs in its place; as it was afterwards."""
    classes: dict[type, nn.Module] = {}
    for module in model.modules():
        classes.setdefault(type(module), module)
    owners = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    with _CHANGING, ExitStack() as stack:
        for owner in owners:
            names = ["_experts_implementation_internal"]
            if owner._supports_attention_backend:  # others choose among their own
                names.append("_attn_implementation_internal")
            for name in names:
                stack.enter_context(_replaced(owner.config, name, _NAME))
        for interface, ours in (
            (ALL_ATTENTION_FUNCTIONS, _attention),
            (ALL_EXPERTS_FUNCTIONS, _experts),
        ):
            known = interface._global_mapping
            known[_NAME] = ours
            stack.callback(known.pop, _NAME)
        for kind, module in classes.items():
            forward = _fused_forward(module)
            if forward is not None:
                stack.enter_context(_replaced(kind, "forward", forward))
        for name in {kind.__module__ for kind in classes}:
            function = getattr(sys.modules.get(name), "apply_rotary_pos_emb", None)
            if function is not None and _parameters(function)[:4] == ["q", "k", "cos", "sin"]:
                stack.enter_context(_replaced(sys.modules[name], "apply_rotary_pos_emb", _rotary))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value."""
    own = name in vars(owner)
    before = getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)
