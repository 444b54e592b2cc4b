"""What happens when a module is called while tracing: its path, and which way it is answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_neuralpower.tracing.fallbacks import describe
from pytest_neuralpower.tracing.leaf_modules import LEAVES
from pytest_neuralpower.tracing.script_calls import call_script_module
from pytest_neuralpower.tracing.torch_private import any_global_hook, without_torch_function

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.module_paths import ModulePaths
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.state import WriteJournal

__all__ = ["ModuleCalls"]

#: The leaf whose input is an integer tensor with its values.
_TAKES_REAL = nn.Embedding


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
        self._special: dict[type, Callable[..., Any] | None] = {}

    def replacement(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What ``Module.__call__`` becomes: plain leaf modules are answered by their rule.

        Local variables and one flat function, as this runs once for every module.
        """
        recorder, names, path_of = self.recorder, self.paths.names, self.paths.of
        bypass = not self._compute and not any_global_hook()
        leaves = LEAVES if bypass else {}
        ordinary = self._ordinary
        get_ident = threading.get_ident
        owner = get_ident()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if get_ident() != owner:  # another thread's module is none of this trace's
                return original(module, *args, **kwargs)
            caller = recorder.path
            name = names.get(id(module))
            path = recorder.path = name if type(name) is str else path_of(module, caller)
            try:
                kind = type(module)
                leaf = leaves.get(kind)
                if leaf is not None and len(args) == 1 and not kwargs:
                    own = module.__dict__
                    if not (own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own):
                        try:
                            with without_torch_function():
                                given = args[0]
                                if given.is_meta or kind is _TAKES_REAL:
                                    return leaf(recorder, module, given)
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
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module's own forward, or what stands for it."""
        kind = type(module)
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

    def _treatment(self, module: nn.Module) -> Callable[..., Any] | None:
        """Another way to call modules of this type, or ``None``."""
        if isinstance(module, torch.jit.ScriptModule):
            return None if self._compute else self._call_script
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
            args=args,
            kwargs=kwargs,
        )


def _call_original(_original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return module._orig_mod(*args, **kwargs)  # type: ignore[operator]


def _call_wrapped(_original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return module.module(*args, **kwargs)  # type: ignore[operator]


def _locate(error: BaseException, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Say on the error which module it came from: the innermost one."""
    try:
        with without_torch_function():
            given = describe(args, kwargs)
        name = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        error.where = f"{name} given {given}"  # type: ignore[attr-defined]
    except Exception:
        pass  # an exception type that takes no attribute: its message must do
