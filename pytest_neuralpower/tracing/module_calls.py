"""What happens when a module is called while tracing: its path, and which way it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_neuralpower.tracing.fallbacks import describe
from pytest_neuralpower.tracing.leaf_modules import LEAVES
from pytest_neuralpower.tracing.script_calls import call_script_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_neuralpower.tracing.module_paths import ModulePaths
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.state import WriteJournal

__all__ = ["ModuleCalls"]

#: Leaves whose input is an integer tensor with its values.
_TAKE_REAL = (nn.Embedding,)


class ModuleCalls:
    """Handles every module call of one trace.

    Parameters
    ----------
    recorder
        Its path follows the calls.
    paths
        Names of the model's modules.
    journal
        Takes back what scripted code writes.
    bypass
        Answer plain leaf modules by their rule, without running their forward; and scripted
        modules at ATen level. Off where operations are computed for real.
    """

    def __init__(
        self, recorder: Recorder, paths: ModulePaths, journal: WriteJournal, *, bypass: bool
    ) -> None:
        self.recorder = recorder
        self.paths = paths
        self.journal = journal
        self.entered: dict[int, tuple[nn.Module, str]] = {}
        self._bypass = bypass and not nn.modules.module._has_any_global_hook()
        self._scripts = bypass
        self._special: dict[type, Callable[..., Any] | None] = {}

    def __call__(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        recorder = self.recorder
        caller = recorder.path
        recorder.path = path = self.paths.of(module, caller)
        kind = type(module)
        leaf = LEAVES.get(kind)
        if leaf is not None and self._bypass and len(args) == 1 and not kwargs:
            own = module.__dict__
            if not (own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own):
                try:
                    with _plainly():
                        input = args[0]
                        if input.is_meta or kind in _TAKE_REAL:
                            result = leaf(recorder, module, input)
                            recorder.path = caller
                            return result
                except Exception:
                    pass  # the ordinary way below answers, or says what is wrong
        try:
            special = self._special[kind]
        except KeyError:
            special = self._special[kind] = self._treatment(module)
        if module._parameters:
            self.entered[id(module)] = (module, path)
        try:
            if special is not None:
                return special(original, module, args, kwargs)
            return original(module, *args, **kwargs)
        except BaseException as error:
            if not hasattr(error, "where"):
                _locate(error, path, module, args, kwargs)
            raise
        finally:
            recorder.path = caller

    def _treatment(self, module: nn.Module) -> Callable[..., Any] | None:
        """Another way to call modules of this type, or ``None``."""
        if isinstance(module, torch.jit.ScriptModule):
            return self._call_script if self._scripts else None
        if hasattr(module, "_orig_mod") and "_orig_mod" in module._modules:
            return _call_original
        if type(module) in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            return _call_wrapped  # one device's share is the model itself
        return None

    def _call_script(
        self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        return call_script_module(
            self.recorder,
            self.journal,
            module,
            lambda *given, **named: original(module, *given, **named),
            args,
            kwargs,
        )


def _call_original(
    original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
) -> Any:
    return module._orig_mod(*args, **kwargs)  # type: ignore[operator]


def _call_wrapped(original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return module.module(*args, **kwargs)  # type: ignore[operator]


def _locate(error: BaseException, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Say on the error which module it came from: the innermost one."""
    try:
        with _plainly():
            given = describe(args, kwargs)
        name = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        error.where = f"{name} given {given}"  # type: ignore[attr-defined]
    except Exception:
        pass  # an exception type that takes no attribute: its message must do


_plainly: Callable[[], Any] = torch._C.DisableTorchFunction
