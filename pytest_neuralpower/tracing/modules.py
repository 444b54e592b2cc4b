"""What happens when a module is called while tracing: its path, and which way it is answered."""

# ruff: noqa: A002, ARG001
# A leaf takes what its module is called with, by the name that torch gives it.

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.modules.lazy import LazyModuleMixin

from pytest_neuralpower.text import escaped
from pytest_neuralpower.tracing.fallbacks import NoRule, describe
from pytest_neuralpower.tracing.rules import (
    conv,
    elementwise,
    matmul,
    memory,
    norm,
    pooling,
    reduction,
)
from pytest_neuralpower.tracing.torch_private import (
    BUFFERS,
    CALL,
    ORIGINAL,
    PARAMETERS,
    POST_HOOKS,
    PRE_HOOKS,
    Attributes,
    any_autocast,
    any_global_hook,
    children_of,
    functorch_level,
    parameters_of,
    without_torch_function,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule
    from pytest_neuralpower.tracing.state import WriteJournal

#: More names than this of one module are not followed: a structure that shares at every level
#: has exponentially many.
_MOST_NAMES: Final = 1024

_lock = threading.RLock()


class ModulePaths:
    """Names of a model's modules.

    Attributes
    ----------
    modules
        Every module once, in ``named_modules`` order.
    names
        By a module's identity: its path, or all of them.
    depth
        Modules with children on the longest way down.
    """

    def __init__(self, model: Module) -> None:
        self.modules: list[Module] = []
        self.names: dict[int, str | list[str]] = {}
        self.depth = 0
        self._calls: dict[tuple[int, str], int] = {}
        self._visit(model, "", ())

    def _visit(self, module: Module, name: str, above: tuple[int, ...]) -> None:
        if not self._name(module, name):
            return
        key = id(module)
        children = children_of(module)
        if not children or key in above:  # a module may hold itself
            return
        above = (*above, key)
        self.depth = max(self.depth, len(above))
        prefix = f"{name}." if name else ""
        names, modules = self.names, self.modules
        for child_name, child in children.items():
            if child is None:
                continue
            # A compiled module wraps the original, whose name is the one users know.
            path = name if child_name == ORIGINAL else prefix + escaped(child_name)
            if id(child) not in names and not children_of(child):
                names[id(child)] = path  # most modules are leaves, met once
                modules.append(child)
            else:
                self._visit(child, path, above)

    def _name(self, module: Module, name: str) -> bool:
        """Take down one more name of a module; ``False`` if it has too many."""
        known = self.names.get(id(module))
        if known is None:
            self.names[id(module)] = name
            self.modules.append(module)
        elif isinstance(known, str):
            self.names[id(module)] = [known, name]
        elif len(known) < _MOST_NAMES:
            known.append(name)
        else:
            return False
        return True

    def of(self, module: Module, caller: str) -> str:
        """Path of a module called from the module at path ``caller``.

        A module with several names answers to those nearest to its caller, one after the other
        on successive calls.
        """
        name = self.names.get(id(module))
        if type(name) is str:
            return name
        if name is None:
            return self._made_inside(module, caller)
        near = list(name)
        scope = caller
        while True:
            inside = [one for one in near if not scope or one.startswith(f"{scope}.")]
            if inside:
                near = inside
                break
            scope = scope.rpartition(".")[0]
        call = self._calls.get((id(module), scope), 0)
        self._calls[id(module), scope] = call + 1
        return near[call % len(near)]

    @staticmethod
    def _made_inside(module: Module, caller: str) -> str:
        """Of a module that is not part of the model: made or held elsewhere."""
        name = type(module).__name__
        return f"{caller}.{name}" if caller else name


@contextmanager
def watched_calls(
    replacement: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Let ``replacement(original)`` answer module calls, of one trace at a time."""
    with _lock:
        original = getattr(Module, CALL)
        setattr(Module, CALL, replacement(original))
        try:
            yield
        finally:
            setattr(Module, CALL, original)


# -- Plain leaf modules of torch: what their forward would call, called directly.
#
# Only for modules of exactly these types, without hooks and with their own forward: a subclass or
# a hook may do anything.


#: Answers a call of one module: the recorder, the operation's name, the module's attributes (as in
#: its ``__dict__``, which is quicker to read), and its input.
Leaf = Callable[["Recorder", str, Attributes, Tensor], Any]


def _by_rule(
    rule: Rule,
    weights: tuple[str, ...] = (),
    settings: tuple[str, ...] = (),
    only: tuple[str, Any] | None = None,
) -> Leaf:
    """Calls a shape rule with parameters of the module, then with attributes of it.

    Parameters
    ----------
    weights, settings
        Their names.
    only
        An attribute and the value that it must have.
    """
    weights_of, settings_of = _getter(weights), _getter(settings)

    def answer(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
        if only is not None and own[only[0]] != only[1]:
            raise NoRule
        return rule(recorder, op, input, *weights_of(own[PARAMETERS]), *settings_of(own))

    return answer


def _getter(names: tuple[str, ...]) -> Callable[[Attributes], tuple[Any, ...]]:
    """Values of these names; a module that lacks one (it is computed) runs its own forward."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda own: tuple([own[name] for name in names])


def _identity(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Tensor:
    return input


def _dropout(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Tensor:
    if own["training"]:
        raise NoRule
    return input


_affine = ("weight", "bias")
_convolution = _by_rule(
    conv.conv, _affine, ("stride", "padding", "dilation", "groups"), ("padding_mode", "zeros")
)
_transposed = _by_rule(
    conv.conv_transpose, _affine, ("stride", "padding", "output_padding", "groups", "dilation")
)
_avg_pool = _by_rule(pooling.avg_pool, settings=("kernel_size", "stride", "padding", "ceil_mode"))
_adaptive_avg_pool = _by_rule(pooling.adaptive_pool, settings=("output_size",))
_linear = _by_rule(matmul.linear, _affine)
_embedding = _by_rule(matmul.embedding, ("weight",), only=("max_norm", None))
_flatten = _by_rule(memory.flatten, settings=("start_dim", "end_dim"))


def _max_pool(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
    return pooling.max_pool(
        recorder, op, input, own["kernel_size"], own["stride"], own["padding"], own["dilation"],
        own["ceil_mode"], indices=own["return_indices"],
    )  # fmt: skip


def _layer_norm(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
    weights = own[PARAMETERS]
    return norm.layer_norm(
        recorder, op, input, own["normalized_shape"], weights["weight"], weights["bias"]
    )


def _group_norm(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
    weights = own[PARAMETERS]
    return norm.group_norm(
        recorder, op, input, own["num_groups"], weights["weight"], weights["bias"]
    )


_RANKS: Final = {"batch_norm1d": (2, 3), "batch_norm2d": (4,), "batch_norm3d": (5,)}


def _batch_norm(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
    if input.ndim not in _RANKS[op]:
        raise NoRule
    weights, buffers = own[PARAMETERS], own[BUFFERS]
    mean, variance = buffers.get("running_mean"), buffers.get("running_var")
    training = own["training"] or mean is None
    return norm.batch_norm(
        recorder, op, input, mean, variance, weights["weight"], weights["bias"], training,
        buffers=True,
    )  # fmt: skip


def _activation(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
    if not input.dtype.is_floating_point or (op == "softplus" and any_autocast()):
        raise NoRule  # CUDA's autocast casts what softplus is given
    inplace = own.get("inplace", False)
    return elementwise.unary(recorder, "activation", op, input, input.dtype, inplace)


def _softmax(recorder: Recorder, op: str, own: Attributes, input: Tensor) -> Any:
    if own["dim"] is None:
        raise NoRule  # torch picks a dimension and warns
    return reduction.softmax(recorder, op, input, own["dim"])


LEAVES: Final[dict[type, tuple[str, Leaf]]] = {
    nn.Conv1d: ("conv1d", _convolution),
    nn.Conv2d: ("conv2d", _convolution),
    nn.Conv3d: ("conv3d", _convolution),
    nn.ConvTranspose1d: ("conv_transpose1d", _transposed),
    nn.ConvTranspose2d: ("conv_transpose2d", _transposed),
    nn.ConvTranspose3d: ("conv_transpose3d", _transposed),
    nn.Linear: ("linear", _linear),
    nn.BatchNorm1d: ("batch_norm1d", _batch_norm),
    nn.BatchNorm2d: ("batch_norm2d", _batch_norm),
    nn.BatchNorm3d: ("batch_norm3d", _batch_norm),
    nn.LayerNorm: ("layer_norm", _layer_norm),
    nn.GroupNorm: ("group_norm", _group_norm),
    nn.Embedding: ("embedding", _embedding),
    nn.MaxPool1d: ("max_pool1d", _max_pool),
    nn.MaxPool2d: ("max_pool2d", _max_pool),
    nn.MaxPool3d: ("max_pool3d", _max_pool),
    nn.AvgPool1d: ("avg_pool1d", _avg_pool),
    nn.AvgPool2d: ("avg_pool2d", _avg_pool),
    nn.AvgPool3d: ("avg_pool3d", _avg_pool),
    nn.AdaptiveAvgPool1d: ("adaptive_avg_pool1d", _adaptive_avg_pool),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", _adaptive_avg_pool),
    nn.AdaptiveAvgPool3d: ("adaptive_avg_pool3d", _adaptive_avg_pool),
    nn.ReLU: ("relu", _activation),
    nn.ReLU6: ("relu6", _activation),
    nn.LeakyReLU: ("leaky_relu", _activation),
    nn.ELU: ("elu", _activation),
    nn.SELU: ("selu", _activation),
    nn.GELU: ("gelu", _activation),
    nn.SiLU: ("silu", _activation),
    nn.Mish: ("mish", _activation),
    nn.Hardswish: ("hardswish", _activation),
    nn.Hardsigmoid: ("hardsigmoid", _activation),
    nn.Hardtanh: ("hardtanh", _activation),
    nn.Sigmoid: ("sigmoid", _activation),
    nn.Tanh: ("tanh", _activation),
    nn.Softplus: ("softplus", _activation),
    nn.Softmax: ("softmax", _softmax),
    **dict.fromkeys(
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
        ("dropout", _dropout),
    ),
    nn.Identity: ("identity", _identity),
    nn.Flatten: ("flatten", _flatten),
}


# -- TorchScript.


def _call_script(
    recorder: Recorder,
    call: Callable[..., Any],
    args: Any,
    kwargs: Any,
    *,
    compute: bool,
    weights: Sequence[Tensor] = (),
) -> Any:
    from pytest_neuralpower.tracing.aten import call_script, run_script  # noqa: PLC0415 - few need it

    if compute:
        return run_script(recorder, call, args, kwargs, weights)
    return call_script(recorder, call, args, kwargs)


_IN_A_THREAD: Final = (
    "The forward uses other threads: what is computed there cannot be seen and is not listed."
)


@contextmanager
def watched_threads(recorder: Recorder) -> Iterator[None]:
    """A note where a forward starts threads while this is active."""
    kind: Any = threading.Thread
    original = kind.start
    owner = threading.get_ident()

    def start(thread: threading.Thread) -> None:
        if threading.get_ident() == owner:
            recorder.notes[_IN_A_THREAD] = None
        original(thread)

    kind.start = start
    try:
        yield
    finally:
        kind.start = original


@contextmanager
def watched_script_functions(recorder: Recorder, *, compute: bool) -> Iterator[None]:
    """Calls of ``torch.jit.script`` functions, listed while this is active."""
    function_type: Any = torch.jit.ScriptFunction
    original = function_type.__call__
    owner = threading.get_ident()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return original(function, *args, **kwargs)
        return _call_script(recorder, partial(original, function), args, kwargs, compute=compute)

    function_type.__call__ = call
    try:
        yield
    finally:
        function_type.__call__ = original


# -- Every call of a module.


class ModuleCalls:
    """Answers every module call of one trace.

    Parameters
    ----------
    recorder
        Its path follows the calls.
    paths
        Names of the model's modules.
    journal
        Takes back what scripted code writes.
    compute
        Operations are computed for real: every module runs its own forward.

    Attributes
    ----------
    entered
        Modules with parameters of their own whose forward ran, with their paths.
    """

    def __init__(
        self, recorder: Recorder, paths: ModulePaths, journal: WriteJournal, *, compute: bool
    ) -> None:
        self.recorder = recorder
        self.paths = paths
        self.journal = journal
        self.entered: dict[int, tuple[nn.Module, str]] = {}
        self._compute = compute
        self._bypass = False
        self._special: dict[type, Callable[..., Any] | None] = {}

    def replacement(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What ``Module.__call__`` becomes: plain leaf modules are answered by their rule.

        Local variables and one flat function, as this runs once for every module.
        """
        recorder, names, path_of = self.recorder, self.paths.names, self.paths.of
        pre_hooks, post_hooks = PRE_HOOKS, POST_HOOKS
        self._bypass = not self._compute and not any_global_hook()
        leaves = LEAVES if self._bypass else {}
        ordinary = self._ordinary
        level = functorch_level
        # One for all: a leaf calls no other.
        plainly = without_torch_function()
        get_ident = threading.get_ident
        owner = get_ident()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if get_ident() != owner:
                if id(module) in names:  # others are none of this trace's
                    recorder.notes[_IN_A_THREAD] = None
                return original(module, *args, **kwargs)
            caller = recorder.path
            name = names.get(id(module))
            path = recorder.path = name if type(name) is str else path_of(module, caller)
            try:
                kind = type(module)
                leaf = leaves.get(kind)
                if leaf is not None and len(args) == 1 and not kwargs:
                    own = module.__dict__
                    if not (own[post_hooks] or own[pre_hooks] or "forward" in own):
                        try:
                            with plainly:
                                given = args[0]
                                # An embedding's input is real: integers keep their values. Under
                                # vmap or torch.func an input hides its lanes and derivatives.
                                if (given.is_meta or kind is nn.Embedding) and level() is None:
                                    op, answer = leaf
                                    return answer(recorder, op, own, given)
                        except Exception:
                            pass  # its own forward answers, or says what is wrong
                return ordinary(original, module, path, args, kwargs)
            finally:
                recorder.path = caller

        return call

    def _ordinary(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        path: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run a module's own forward, or what stands for it."""
        kind = type(module)
        try:
            special = self._special[kind]
        except KeyError:
            special = self._special[kind] = self._treatment(module)
        if parameters_of(module):
            self.entered[id(module)] = (module, path)
        try:
            if special is not None:
                return special(original, module, args, kwargs)
            own = module.__dict__
            if not self._bypass or own[POST_HOOKS] or own[PRE_HOOKS]:
                return original(module, *args, **kwargs)
            return module.forward(*args, **kwargs)  # nothing differentiates on this route
        except BaseException as error:
            if not hasattr(error, "where"):
                _locate(error, path, module, args, kwargs)
            raise

    def _treatment(self, module: nn.Module) -> Callable[..., Any] | None:
        """Another way to call modules of this type, or ``None``."""
        if isinstance(module, torch.jit.ScriptModule):
            return self._call_script
        if ORIGINAL in children_of(module):
            return _call_original
        if type(module) in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            return _call_wrapped  # one device's share is the model itself
        if isinstance(module, LazyModuleMixin):
            return _call_lazy
        return None

    def _call_script(
        self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """A scripted or traced module; its buffers are written by compiled code."""
        with without_torch_function():
            for buffer in module.buffers():
                self.journal.keep(buffer)
            weights = list(module.parameters())
        self.recorder.seen.update(map(id, weights))
        return _call_script(
            self.recorder, partial(original, module), args, kwargs, compute=self._compute,
            weights=weights,
        )  # fmt: skip


def _call_original(_original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return getattr(module, ORIGINAL)(*args, **kwargs)


def _call_wrapped(_original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return module.module(*args, **kwargs)  # type: ignore[operator]


def _call_lazy(original: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> Any:
    """Its parameters are made out of sight, for only a first call makes them."""
    initialise = module.initialize_parameters

    def unseen(*given: Any, **named: Any) -> None:
        with without_torch_function():
            initialise(*given, **named)

    module.initialize_parameters = unseen
    try:
        return original(module, *args, **kwargs)
    finally:
        del module.initialize_parameters


def _locate(error: BaseException, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Say on the error which module it came from: the innermost one."""
    try:
        with without_torch_function():
            given = describe(args, kwargs)
        name = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        error.where = f"{name} given {given}"  # type: ignore[attr-defined]
    except Exception:
        pass  # an exception type that takes no attribute: its message must do
