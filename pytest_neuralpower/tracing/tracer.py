"""``trace``: the layers of one model call, by the cheapest route that can tell."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.layers import Trace
from pytest_neuralpower.tracing.function_route import trace_functions
from pytest_neuralpower.tracing.inputs import batch_size, input_tensors, not_a_tensor
from pytest_neuralpower.tracing.lazy_modules import has_lazy_modules, initialised_later
from pytest_neuralpower.tracing.module_paths import ModulePaths
from pytest_neuralpower.tracing.signals import NeedsAten, NeedsForward, ShapeMismatch

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder

__all__ = ["trace"]


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
            "wrap a function in a module, or pass the model that it belongs to"
        )
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    tensors = input_tensors((args, kwargs))
    route, recorder = _first_route(model, args, kwargs)
    return Trace(
        layers=tuple(recorder.layers),
        route=route,
        fallbacks=tuple(recorder.fallbacks),
        notes=tuple(recorder.notes),
        batch=batch_size(tensors),
        model=type(model).__name__,
    )


def _first_route(model: nn.Module, args: Any, kwargs: Any) -> tuple[str, Recorder]:
    paths = ModulePaths(model)
    if has_lazy_modules(paths.modules):
        reason = NeedsForward("it has lazy modules, which were initialised in a copy")
        return "forward", _forward(initialised_later(model), args, kwargs, reason)
    cause: BaseException
    try:
        return "function", trace_functions(model, args, kwargs, paths)
    except NeedsAten as detour:
        # The other routes load when a model needs them: few do.
        from pytest_neuralpower.tracing.aten_route import trace_dispatcher  # noqa: PLC0415

        try:
            recorder = trace_dispatcher(model, args, kwargs)
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
    from pytest_neuralpower.tracing.forward_route import (  # noqa: PLC0415 - few models need it
        lacks_values,
        trace_forward,
    )

    reason = cause.reason if isinstance(cause, NeedsForward) else None
    lacking = lacks_values(model, args, kwargs)
    if lacking is not None:
        if reason is None:
            _refuse(model, args, kwargs, cause)
        where = getattr(cause, "where", "")
        raise TraceError(
            f"cannot trace {type(model).__name__} without values: {reason}"
            f"{f' in {where}' if where else ''}, but {lacking} on the meta device; build the "
            "model and its inputs on the CPU, so that one real forward can be run"
        ) from None
    try:
        recorder = trace_forward(model, args, kwargs)
    except Exception as error:
        _refuse(model, args, kwargs, error)
    where = getattr(cause, "where", "")
    because = reason or f"its code failed on tensors without data ({_first_line(cause)})"
    recorder.notes[
        f"Traced by one real forward because {because}{f' in {where}' if where else ''}."
    ] = None
    return recorder


def _refuse(model: nn.Module, args: Any, kwargs: Any, error: BaseException) -> NoReturn:
    """One line for a model that does not take these arguments."""
    name = type(model).__name__
    wrong = _wrong_arguments(model, args, kwargs)
    if wrong is not None:
        raise TraceError(
            f"cannot trace {name}: its forward does not take these arguments ({wrong}); "
            f"it takes {inspect.signature(model.forward)}"
        ) from None
    no_tensor = not_a_tensor(args, kwargs)
    if no_tensor is not None:
        raise TraceError(f"cannot trace {name}: {no_tensor}") from None
    where = getattr(error, "where", "") or f"{name}.forward"
    kind = "" if isinstance(error, ShapeMismatch) else f"{type(error).__name__}: "
    reason = _first_line(error)
    todo = "check the example inputs' shapes and dtypes"
    if "'indices'" in reason and "scalar type" in reason:  # torch's words of an embedding
        todo = "an embedding takes integers: give that input an integer dtype, such as 1,128:int64"
    raise TraceError(f"cannot trace {name}: {where} failed with {kind}{reason}; {todo}") from None


def _wrong_arguments(model: nn.Module, args: Any, kwargs: Any) -> str | None:
    """What is wrong with the arguments' number or names; ``None`` if nothing is."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".;: ") if lines else type(error).__name__


def _describe(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} (call it to make an instance)"
    return f"{type(value).__name__} {getattr(value, '__name__', '')}".strip()
