"""Feature maps of a model's layers: what one layer reads and writes over the calibration calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.calls import Call

__all__ = ["RECONSTRUCTED", "Reconstructed", "each_map", "unfolded_input", "unfolded_output"]

#: Modules whose weights are refitted by least squares.
RECONSTRUCTED = (nn.Conv1d, nn.Conv2d, nn.Linear)

Reconstructed: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Linear

Maps = Callable[[str, torch.Tensor, torch.Tensor], None]


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was


def each_map(model: nn.Module, paths: Iterable[str], calls: Iterable[Call], visit: Maps) -> None:
    """Run the calls; hand each named module's input and output to ``visit``, in running order.

    The model runs in inference mode and comes back as it was.
    """
    hooks = []
    for path in paths:

        def hook(_module: nn.Module, given: Any, made: Any, path: str = path) -> None:
            visit(path, given[0], made)

        hooks.append(model.get_submodule(path).register_forward_hook(hook))
    try:
        with _inference(model):
            for call in calls:
                model(*call.args, **call.kwargs)
    finally:
        for handle in hooks:
            handle.remove()


def unfolded_input(module: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Inputs of each product a layer computes.

    Returns
    -------
    Tensor of shape (groups, rows, unknowns)
        Rows are samples x output positions; unknowns are in the order of the weight's dimensions
        after the first.
    """
    if isinstance(module, nn.Linear):
        return given.reshape(1, -1, given.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    sizes: tuple[tuple[int, ...], ...] = (module.kernel_size, module.dilation, module.stride)
    if isinstance(module, nn.Conv1d):  # a map of height 1
        padded = padded.unsqueeze(-2)
        sizes = tuple((1, *size) for size in sizes)
    kernel, dilation, stride = sizes
    columns = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    samples, _, positions = columns.shape
    grouped = columns.view(samples, module.groups, -1, positions)
    return grouped.permute(1, 0, 3, 2).reshape(module.groups, samples * positions, -1)


def unfolded_output(module: nn.Module, made: torch.Tensor) -> torch.Tensor:
    """Outputs of each product: shape (groups, rows, outputs of a group)."""
    if isinstance(module, nn.Linear):
        return made.reshape(1, -1, made.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    samples, channels = made.shape[:2]
    grouped = made.reshape(samples, module.groups, channels // module.groups, -1)
    return grouped.permute(1, 0, 3, 2).reshape(module.groups, -1, channels // module.groups)
