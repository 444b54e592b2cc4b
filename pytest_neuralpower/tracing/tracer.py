"""The layers of one model call, by the cheapest route that can tell."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from contextlib import contextmanager, nullcontext
from itertools import filterfalse
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, is_lazy

from pytest_neuralpower.collector import collector_paused
from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.layers import Trace
from pytest_neuralpower.text import printable
from pytest_neuralpower.tracing.control_flow import uncompiled_operators
from pytest_neuralpower.tracing.cuda import find_imported, without_cuda
from pytest_neuralpower.tracing.fallbacks import NeedsAten, NeedsForward, ShapeMismatch
from pytest_neuralpower.tracing.flex import watched_flex_attention
from pytest_neuralpower.tracing.function_mode import FunctionTracer
from pytest_neuralpower.tracing.inputs import (
    batch_size,
    input_tensors,
    map_inputs,
    not_a_tensor,
    token_count,
    without_data,
)
from pytest_neuralpower.tracing.modules import (
    ModuleCalls,
    ModulePaths,
    watched_calls,
    watched_script_functions,
    watched_threads,
)
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.state import WriteJournal, global_state, module_state
from pytest_neuralpower.tracing.torch_private import (
    COMPILER,
    ORIGINAL,
    FakeTensorMode,
    parameters_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

# -- The function route: the model's Python runs on tensors without data.


def _trace_functions(model: nn.Module, args: Any, kwargs: Any, paths: ModulePaths) -> Recorder:
    """Layers by shape rules.

    Raises
    ------
    NeedsAten, NeedsForward
        Another route must be taken.
    """
    device = home_device(model, args, kwargs)
    recorder = Recorder(device.type)
    journal = WriteJournal()
    calls = ModuleCalls(recorder, paths, journal, compute=False)
    with _as_it_was(paths, journal), torch.no_grad():
        given, named = map_inputs(args, without_data), map_inputs(kwargs, without_data)
        with (
            watched_calls(calls.replacement),
            without_cuda(recorder),
            watched_threads(recorder),
            watched_flex_attention(recorder, compute=False),
            watched_script_functions(recorder, compute=False),
            FunctionTracer(recorder, journal, device),
        ):
            model(*given, **named)
    _note_unseen(recorder, calls)
    return recorder


def home_device(model: nn.Module, args: Any, kwargs: Any) -> torch.device:
    """Where the model would run: where its inputs are, or its first parameter; never meta."""
    for tensor in input_tensors((args, kwargs)):
        if tensor.device.type != "meta":
            return tensor.device
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    return torch.device("cpu")


@contextmanager
def _as_it_was(paths: ModulePaths, journal: WriteJournal) -> Iterator[None]:
    """The process and the model, after the run as before it."""
    with global_state(), module_state(paths.modules), _eager_only(), uncompiled_operators():
        try:
            yield
        finally:
            journal.undo()


def _eager_only() -> AbstractContextManager[Any]:
    """Run functions that ``torch.compile`` made as they were written."""
    if COMPILER not in sys.modules:  # nothing was compiled, and importing it costs seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _note_unseen(recorder: Recorder, calls: ModuleCalls) -> None:
    """A module that ran, but whose parameters reached no operation that we saw.

    A parameter that merely goes unused is no reason to warn: it must be named by the module's
    forward, or the module must have listed nothing at all.
    """
    for module, path in calls.entered.values():
        own = {name: one for name, one in parameters_of(module).items() if one is not None}
        if not own or any(id(parameter) in recorder.seen for parameter in own.values()):
            continue
        code = getattr(type(module).forward, "__code__", None)
        named = code is not None and any(name in code.co_names for name in own)
        below = f"{path}." if path else ""
        if named or not any(
            layer.path == path or layer.path.startswith(below) for layer in recorder.layers
        ):
            label = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
            recorder.notes[
                f"{label} ran, but none of its parameters was read by an operation that could be "
                "seen: an extension (pybind, Triton) may have done work that is not listed."
            ] = None


# -- The forward route: one real forward, every operation listed as it runs.


def _lacks_values(model: nn.Module, args: Any, kwargs: Any) -> str | None:
    """What stands in the way of a real forward: the first tensor without data."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"{name!r} is"
    if any(tensor.is_meta for tensor in input_tensors((args, kwargs))):
        return "an input is"
    return None


def _trace_forward(model: nn.Module, args: Any, kwargs: Any) -> Recorder:
    """Layers of a real forward, where the model and its inputs are."""
    device = home_device(model, args, kwargs)
    recorder = Recorder(device.type)
    recorder.producers = WeakKeyDictionary()  # activations go as they do without us
    journal = WriteJournal()
    paths = ModulePaths(model)
    calls = ModuleCalls(recorder, paths, journal, compute=True)
    with _gradients(model), _as_it_was(paths, journal):
        # Copies: a cache is extended, an input may be written to.
        given, named = map_inputs(args, _copy), map_inputs(kwargs, _copy)
        for buffer in filterfalse(is_lazy, model.buffers()):
            journal.keep(buffer)  # batch norm writes its statistics inside the kernel
        with (
            watched_calls(calls.replacement),
            without_cuda(recorder),
            watched_threads(recorder),
            watched_flex_attention(recorder, compute=True),
            watched_script_functions(recorder, compute=True),
            FunctionTracer(recorder, journal, device, compute=True),
        ):
            model(*given, **named)
    return recorder


def _copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return copied.requires_grad_() if tensor.requires_grad else copied


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """``.grad`` of every parameter, as it was on entry."""
    before = [
        (parameter, parameter.grad, None if parameter.grad is None else parameter.grad.clone())
        for parameter in model.parameters()
    ]
    try:
        yield
    finally:
        for parameter, gradient, values in before:
            parameter.grad = gradient
            if gradient is not None and values is not None:
                gradient.detach().copy_(values)


def _has_lazy_modules(modules: Sequence[nn.Module]) -> bool:
    """Whether a module still has to learn its parameters' shapes."""
    if not any(issubclass(kind, LazyModuleMixin) for kind in set(map(type, modules))):
        return False
    return any(
        isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        for module in modules
    )


def _initialised_later(model: nn.Module) -> nn.Module:
    """A copy that shares every parameter which has values already."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor):
            memo[id(tensor)] = tensor
        elif isinstance(tensor, UninitializedBuffer):  # torch copies lazy parameters only
            device, dtype = tensor.data.device, tensor.data.dtype
            kind: Any = UninitializedBuffer
            memo[id(tensor)] = kind(device=device, dtype=dtype)
    return copy.deepcopy(model, memo)


# -- The ATen route: the whole model on fake tensors, where it differentiates or batches inside.


def _trace_aten(model: nn.Module, args: Any, kwargs: Any) -> Recorder:
    """Layers as the dispatcher sees them, backward operations included.

    Raises
    ------
    NeedsForward
        The model's next step depends on values.
    """
    from pytest_neuralpower.tracing.aten import dispatched, fake_like  # noqa: PLC0415 - few need it

    recorder = Recorder()
    journal = WriteJournal()
    paths = ModulePaths(model)
    calls = ModuleCalls(recorder, paths, journal, compute=True)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def to_fake(tensor: Tensor) -> Tensor:
        fake = fake_like(fakes, tensor)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake.requires_grad_() if tensor.requires_grad else fake

    # The fakes stand in for parameters and buffers, so nothing real can be written.
    stand_ins = {
        name: to_fake(tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    with _as_it_was(paths, journal):
        given, named = map_inputs(args, to_fake), map_inputs(kwargs, to_fake)
        with (
            watched_calls(calls.replacement),
            without_cuda(recorder),
            watched_threads(recorder),
            dispatched(recorder, fakes, "it"),
        ):
            torch.func.functional_call(model, stand_ins, given, named)
    return recorder


# -- The public ``trace``.

#: What torch says where there is no CUDA.
_LACKS_CUDA: Final = re.compile("CUDA|NVTX|NVIDIA|dummy base class")

_WRAP: Final = (
    "call what builds the model, wrap a function in a module, or pass the model that it belongs to"
)

#: What to trace instead of an object of torch's that is no module, by its type.
_INSTEAD: Final = {
    "ExportedProgram": "pass its module()",
    "AOTICompiledModel": "it is compiled: pass module() of the exported program it was made of",
}


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """List the layers of ``model(*args, **kwargs)``.

    Runs the model's Python on tensors without data, so that nothing is computed and no weight is
    read; where the model's own code needs values, it runs once for real on the CPU. The model,
    the arguments and the random state come back as they were.

    Parameters
    ----------
    model
        Any module, on any device; ``torch.device("meta")`` makes building it fast.
    *args, **kwargs
        What its forward takes. Only shapes, dtypes and strides of floating tensors matter;
        integer and boolean ones keep their values.

    Returns
    -------
    Trace
        The layers in execution order, and the route taken: ``function``, ``aten`` or ``forward``.

    Raises
    ------
    TraceError
        The model refuses these inputs, or needs values that a model on the meta device lacks.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"trace() needs a torch.nn.Module as its first argument, got {_describe(model)}: "
            f"{_INSTEAD.get(type(model).__name__, _WRAP)}"
        )
    model = getattr(model, ORIGINAL, model)  # torch.compile's wrapper
    with collector_paused(), _deeper_calls():
        try:
            route, recorder = _first_route(model, args, kwargs)
        except TraceError as error:
            if not _LACKS_CUDA.search(str(error)) or not find_imported():
                raise
            # What was imported by name (``from torch.cuda import synchronize``) is known by now.
            route, recorder = _first_route(model, args, kwargs)
    batch = batch_size(args, kwargs)
    if not batch and (sizes := _first_dimensions(args, kwargs)):
        recorder.notes[
            f"The inputs do not tell how many samples a call has (first dimensions {sizes}): give "
            "markers per='sample' their samples=."
        ] = None
    return Trace(
        layers=tuple(recorder.layers),
        reads=tuple(recorder.reads),
        route=route,
        fallbacks=tuple(recorder.fallbacks),
        notes=tuple(printable(each, _NOTE) for each in recorder.notes),
        batch=batch,
        model=printable(type(model).__name__),
        tokens=token_count(args, kwargs),
    )


#: Characters of a note: it may name modules and classes.
_NOTE: Final = 1000

#: Modules nested deeper than this get further frames of Python's, so many each: called alone, too,
#: they would need a higher limit.
_DEEP: Final = 100
_FRAMES: Final = 8


@contextmanager
def _deeper_calls() -> Iterator[None]:
    """A module called takes up to three times as many of Python's frames here as it does alone."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(3 * limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _first_dimensions(args: Any, kwargs: Any) -> str:
    """Of the inputs, where they differ."""
    sizes = {int(tensor.shape[0]): None for tensor in input_tensors((args, kwargs)) if tensor.ndim}
    return ", ".join(map(str, sizes)) if len(sizes) > 1 else ""


def _first_route(model: nn.Module, args: Any, kwargs: Any) -> tuple[str, Recorder]:
    try:
        paths = ModulePaths(model)
    except RecursionError as error:
        _refuse(model, args, kwargs, error)
    if paths.depth > _DEEP:
        sys.setrecursionlimit(sys.getrecursionlimit() + _FRAMES * paths.depth)
    if _has_lazy_modules(paths.modules):
        reason = NeedsForward("it has lazy modules, which were initialised in a copy")
        return "forward", _forward(_initialised_later(model), args, kwargs, reason)
    cause: BaseException
    try:
        return "function", _trace_functions(model, args, kwargs, paths)
    except NeedsAten as detour:
        try:
            recorder = _trace_aten(model, args, kwargs)
        except (NeedsForward, Exception) as error:
            cause = error
        else:
            recorder.notes[f"Traced at ATen level because {detour.reason}."] = None
            return "aten", recorder
    except NeedsForward as detour:
        cause = detour
    except Exception as error:
        # Torch refused the inputs, or the model's own code failed: on its inputs, or because
        # tensors have no data.
        if isinstance(error, ShapeMismatch) or _wrong_arguments(model, args, kwargs):
            _refuse(model, args, kwargs, error)
        cause = error
    return "forward", _forward(model, args, kwargs, cause)


def _forward(model: nn.Module, args: Any, kwargs: Any, cause: BaseException) -> Recorder:
    """The forward route, where the model has values to compute with."""
    reason = cause.reason if isinstance(cause, NeedsForward) else None
    place = getattr(cause, "where", "")
    where = f" in {place}" if place else ""
    lacking = _lacks_values(model, args, kwargs)
    if lacking is not None:
        if reason is None:
            _refuse(model, args, kwargs, cause)
        raise TraceError(
            f"cannot trace {type(model).__name__} without values: {reason}{where}, but {lacking} "
            "on the meta device; build the model and its inputs on the CPU, so that one real "
            "forward can be run"
        ) from None
    try:
        recorder = _trace_forward(model, args, kwargs)
    except NeedsForward as error:  # it found no kernel there, either
        _refuse(model, args, kwargs, NotImplementedError(error.reason))
    except Exception as error:
        _refuse(model, args, kwargs, error)
    because = reason or f"its code failed on tensors without data ({_first_line(cause)})"
    recorder.notes[f"Traced by one real forward because {because}{where}."] = None
    return recorder


def _refuse(model: nn.Module, args: Any, kwargs: Any, error: BaseException) -> NoReturn:
    """One line for a model that does not take these arguments."""
    name = type(model).__name__
    if not hasattr(model, "forward"):
        raise TraceError(
            f"cannot trace {name}: it has no forward; torch.jit.script makes none of an nn.GRU or "
            "nn.LSTM alone: script a module that calls it, or trace it as it is"
        )
    wrong = _wrong_arguments(model, args, kwargs)
    if wrong is not None:
        raise TraceError(
            f"cannot trace {name}: its forward does not take these arguments ({wrong}); "
            f"it takes {inspect.signature(model.forward)}"
        ) from None
    if isinstance(error, TraceError):
        raise TraceError(f"cannot trace {name}: {error}") from None
    if isinstance(error, RecursionError):
        raise TraceError(
            f"cannot trace {name}: its modules or functions call each other too deeply for "
            "Python's limit: raise it (sys.setrecursionlimit)"
        ) from None
    no_tensor = not_a_tensor(args, kwargs)
    if no_tensor is not None:
        raise TraceError(f"cannot trace {name}: {no_tensor}") from None
    where = getattr(error, "where", "") or f"{name}.forward"
    kind = "" if isinstance(error, ShapeMismatch) else f"{type(error).__name__}: "
    reason = _reason(error)
    if "NestedTensor" in reason:
        raise TraceError(
            f"cannot trace {name}: a nested tensor cannot be priced: pad it "
            "(torch.nested.to_padded_tensor)"
        ) from None
    todo = "check the example inputs' shapes and dtypes"
    if "'indices'" in reason and "scalar type" in reason:  # torch's words of an embedding
        todo = "an embedding takes integers: give that input an integer dtype, such as 1,128:int64"
    elif not torch.cuda.is_available() and _LACKS_CUDA.search(reason):
        todo = "it calls CUDA, which this machine lacks: make that call depend on is_available()"
    raise TraceError(f"cannot trace {name}: {where} failed with {kind}{reason}; {todo}") from None


def _wrong_arguments(model: nn.Module, args: Any, kwargs: Any) -> str | None:
    """What is wrong with the arguments' number or names; ``None`` if nothing is."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError, AttributeError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = signature.parameters.values()
        any_name = any(each.kind is each.VAR_KEYWORD for each in takes)
        unknown = [] if any_name else [name for name in kwargs if name not in signature.parameters]
        return f"unknown argument {', '.join(map(repr, unknown))}" if unknown else str(error)
    return None


def _reason(error: BaseException) -> str:
    """What was wrong: TorchScript says it last."""
    first = _first_line(error)
    if "TorchScript interpreter" not in first:
        return first
    return str(error).strip().splitlines()[-1].strip().rstrip(".;: ")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".;: ") if lines else type(error).__name__


def _describe(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} (call it to make an instance)"
    return f"{type(value).__name__} {getattr(value, '__name__', '')}".strip()
