"""The one place that knows torch-pruning: which axes of which modules share channels.

torch-pruning follows autograd's graph of one forward call. It guesses what it does not know, so
that nothing here is believed before ``find_groups`` has narrowed the
model accordingly and traced it.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_neuralpower.errors import MissingExtraError, UnsupportedGraphError
from pytest_neuralpower.layers import KINDS
from pytest_neuralpower.tracing.inputs import input_tensors
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.rules import entry_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: torch-pruning's name of a module's type -> ours.
_KINDS = {
    "CONV": "conv",
    "DEPTHWISE_CONV": "depthwise",
    "LINEAR": "linear",
    "BN": "norm",
    "LN": "norm",
    "GN": "norm",
    "IN": "norm",
    "EMBED": "embedding",
    "PRELU": "prelu",
    "PARAMETER": "parameter",
    "MHA": "attention",
    "LSTM": "rnn",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """Channels that one module writes (``out``) or reads (``in``), and how they are grouped."""

    path: str
    axis: Literal["out", "in"]
    kind: str
    size: int
    groups: int = 1
    dim: int = 0


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channels of two axes that belong together, pair by pair, on behalf of one root axis.

    ``channels[i]`` of ``axis`` belongs with ``root_channels[i]`` of ``root``. ``through`` names
    operations on the way that move channels where torch-pruning cannot follow.
    """

    root: Axis
    root_channels: NDArray[np.intp]
    axis: Axis
    channels: NDArray[np.intp]
    through: str = ""


def _library() -> Any:
    try:
        import torch_pruning  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError(
            "finding a model's channel groups needs torch-pruning; install it with "
            "pip install 'pytest-neuralpower[prune]'"
        ) from None
    return torch_pruning


def module_pruner(module: nn.Module) -> Any:
    """torch-pruning's functions that remove channels of one module."""
    library = _library()
    return library.pruner.function.PrunerBox[library.dependency.graph.ops.module2type(module)]


def unknown_modules(model: nn.Module) -> dict[str, str]:
    """Path and type of the modules whose weight matrices torch-pruning has no channels of."""
    types = _library().dependency.graph.ops
    return {
        path: type(module).__name__
        for path, module in model.named_modules()
        if types.module2type(module).name not in _KINDS
        and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    }


def follow(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Coupling]:
    """Which channels belong together, over one forward call.

    Parameters
    ----------
    model
        Its floating parameters must require gradients; it is put into evaluation mode.
    run
        Calls the model once and returns its outputs.

    Raises
    ------
    MissingExtraError
        torch-pruning is not installed.
    UnsupportedGraphError
        It cannot follow the call; the message names the operation.
    """
    library = _library()
    graph = library.DependencyGraph()
    outputs: list[torch.Tensor] = []  # keep the graph: torch 2.9 names no node of a freed one

    def forward(followed: nn.Module, _: Any) -> list[torch.Tensor]:
        outputs.extend(_differentiable(run(followed)))
        return outputs

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(
                model,
                example_inputs=None,
                forward_fn=forward,
                verbose=False,
            )
            return list(_couplings(graph, library))
        except (MissingExtraError, UnsupportedGraphError):
            raise
        except Exception as error:
            raise UnsupportedGraphError(
                f"cannot tell which widths of {type(model).__name__} belong together: "
                f"torch-pruning stops at {_operation(error)} ({type(error).__name__}: "
                f"{first_line(error)}); wrap or replace that operation, or change widths by hand"
            ) from error


def _differentiable(outputs: Any) -> list[Tensor]:
    followed = [tensor for tensor in output_tensors(outputs) if tensor.grad_fn is not None]
    if not followed:
        raise UnsupportedGraphError(
            "cannot tell which widths belong together: no output of the model depends on its "
            "weights by operations that autograd follows"
        )
    return followed


def output_tensors(outputs: Any) -> list[Tensor]:
    """Tensors among a model's outputs, in containers and in objects (Hugging Face's)."""
    plain = isinstance(outputs, Tensor | dict | list | tuple)
    return input_tensors(outputs if plain else getattr(outputs, "__dict__", outputs))


def _couplings(graph: Any, library: Any) -> Iterator[Coupling]:
    names = {module: name for name, module in graph.model.named_modules()}
    names.update({parameter: name for name, parameter in graph.model.named_parameters()})
    types = library.dependency.graph.ops
    shuffles = set(_shuffles(graph))
    covered: dict[Axis, set[int]] = {}
    for module in list(graph.module2node):
        if not isinstance(module, types.TORCH_CONV | types.TORCH_LINEAR):
            continue
        pruner = graph.get_pruner_of_module(module)
        size = int(pruner.get_out_channels(module))
        root = _axis(graph, types, names, graph.module2node[module], "out")
        if len(covered.get(root, ())) == size:  # known from a root that it is coupled with
            continue
        group = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(size)))
        through = "a channel shuffle" if any(d.target in shuffles for d, _ in group.items) else ""
        for item in group.items:
            node, handler = item.dep.target, item.dep.handler
            if types.module2type(node.module).name not in _KINDS or node.module not in names:
                continue
            other = graph.get_pruner_of_module(node.module)
            only_reads = other.prune_in_channels == handler != other.prune_out_channels
            axis = _axis(graph, types, names, node, "in" if only_reads else "out")
            roots = [-1 if index is None else index for index in item.root_idxs]
            covered.setdefault(axis, set()).update(item.idxs)
            pairs = np.array([roots, item.idxs], dtype=np.intp)
            yield Coupling(root, pairs[0], axis, pairs[1], through)


def _axis(
    graph: Any, types: Any, names: Mapping[Any, str], node: Any, side: Literal["out", "in"]
) -> Axis:
    module, pruner = node.module, graph.get_pruner_of_module(node.module)
    kind = _KINDS[types.module2type(module).name]
    if kind == "parameter":
        dim = node.pruning_dim % module.dim()
        return Axis(names[module], side, kind, int(module.shape[dim]), dim=dim)
    size = pruner.get_out_channels(module) if side == "out" else pruner.get_in_channels(module)
    groups = 1 if kind == "depthwise" else int(pruner.get_out_channel_groups(module))
    return Axis(names[module], side, kind, int(size or 0), groups)


def _shuffles(graph: Any) -> Iterator[Any]:
    """Nodes of reshapes that split the channels of images and put them together in another order.

    torch-pruning takes them for the identity.
    """
    for node in graph.module2node.values():
        joined = _reshaped(node)
        if joined is None or len(joined) != 5:
            continue
        waiting = list(node.inputs)
        for _ in range(3):  # a transpose, and perhaps the copy after it
            for before in waiting:
                split = _reshaped(before)
                if split is not None and len(split) == 4 and split[1] == joined[1] * joined[2]:
                    yield from (before, node)
            waiting = [each for before in waiting for each in before.inputs]


def _reshaped(node: Any) -> Sequence[int] | None:
    """Shape of what a reshape takes; None for another operation."""
    if "view" not in (name := _name(node)) and "reshape" not in name:
        return None
    return getattr(node.grad_fn, "_saved_self_sym_sizes", None)


def _name(node: Any) -> str:
    return str(node.grad_fn.name()).lower() if hasattr(node.grad_fn, "name") else ""


def _operation(error: BaseException) -> str:
    """The operation that torch-pruning was at, or the model's own line that failed."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if hasattr(value, "grad_fn") and hasattr(value, "dependencies"):
                return f"{value.name} [{_name(value)}]"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.name} ({last.line})" if last.line else last.name


def first_line(error: BaseException) -> str:
    """What an error of other code says in its first line; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# -- Autograd's graph of a call, by the tracer's shape rules.
#
# Torch's own meta kernels would do; but the first of them imports ``torch._dynamo``, which takes
# seconds.

#: Operations of these kinds keep, mix or reduce channels, none moves them.
_SHAPE_RULE_KINDS: Final = frozenset(KINDS) - {"rnn", "embedding", "memory", "uncovered"}

#: So do these that only copy.
_COPIES: Final = ("clone", "contiguous", "to", "pad", "interpolate")


class _Opaque(torch.autograd.Function):
    """A tensor like ``planned`` that depends on ``tensors``."""

    @staticmethod
    def forward(_ctx: Any, planned: Tensor, *_tensors: Tensor) -> Tensor:
        return torch.empty_strided(
            planned.shape, planned.stride(), dtype=planned.dtype, device="meta"
        )


class _Cat(torch.autograd.Function):
    """The same for ``cat``: torch-pruning knows it by its name and ``_saved_dim``."""

    @staticmethod
    def forward(ctx: Any, planned: Tensor, dim: int, *_tensors: Tensor) -> Tensor:
        ctx._saved_dim = dim
        return _Opaque.forward(ctx, planned)


class WithoutKernels(TorchFunctionMode):
    """Answers torch functions on tensors without data, so that autograd sees who used whom.

    What has no rule, returns several tensors or writes in place is left to torch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        entry = entry_of(func)
        if entry.rule is None:
            return func(*args, **kwargs)
        operands = input_tensors((args, kwargs))
        if not any(tensor.is_meta for tensor in operands):
            return func(*args, **kwargs)
        planned = _plan(entry.op, entry.rule, args, kwargs)
        if type(planned) is not Tensor or any(planned is operand for operand in operands):
            return func(*args, **kwargs)
        if entry.op == "cat":
            dim = _cat_dim(*args, **kwargs) % planned.dim()
            return _Cat.apply(planned, dim, *operands)  # type: ignore[no-untyped-call]
        return _Opaque.apply(planned, *operands)  # type: ignore[no-untyped-call]


def _plan(op: str, rule: Any, args: Any, kwargs: Any) -> Any:
    """What the operation returns, by its shape rule; None where torch must say."""
    recorder = Recorder("cpu")
    try:
        with torch.no_grad():
            planned = rule(recorder, op, *args, **kwargs)
    except Exception:  # the rule does not know: torch does, or says what is wrong
        return None
    kind = recorder.layers[-1].kind if recorder.layers else ""
    known = kind in _SHAPE_RULE_KINDS or (kind == "memory" and op in (*_COPIES, "cat"))
    return planned if known else None


def _cat_dim(_tensors: Any = (), dim: int = 0, axis: int | None = None, **_: Any) -> int:
    return dim if axis is None else axis
