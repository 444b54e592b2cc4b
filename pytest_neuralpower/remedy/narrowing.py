"""Take channels out of a model's modules, for real."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_neuralpower.remedy.torch_pruning import module_pruner

if TYPE_CHECKING:
    from pytest_neuralpower.remedy.channels import ChannelGroup, Slot

__all__ = ["remove_units", "touched_modules"]


def remove_units(model: nn.Module, removed: Iterable[tuple[ChannelGroup, Sequence[int]]]) -> None:
    """Remove units of channel groups from a model, in place.

    Parameters
    ----------
    model
        With the modules' names and shapes that the groups were found for.
    removed
        Each group with the units to remove, all counted before anything is removed.
    """
    channels: dict[tuple[str, str, str, int], set[int]] = {}
    for group, units in removed:
        for slot in group.slots:
            key = (slot.path, slot.axis, slot.kind, slot.dim)
            gone = slot.indices[list(units)].ravel().tolist()
            channels.setdefault(key, set()).update(gone)
    for (path, axis, kind, dim), found in channels.items():
        if not found:
            continue
        if kind == "parameter":
            _narrow_parameter(model, path, dim, found)
        else:
            _narrow_module(model.get_submodule(path), axis, sorted(found))


def touched_modules(model: nn.Module, slots: Iterable[Slot]) -> list[nn.Module]:
    """The modules whose weights removing these slots' channels changes, once each."""
    paths = (s.path.rpartition(".")[0] if s.kind == "parameter" else s.path for s in slots)
    return list(dict.fromkeys(model.get_submodule(path) for path in paths))


def _narrow_parameter(model: nn.Module, path: str, dim: int, gone: set[int]) -> None:
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, name)
    kept = [index for index in range(old.shape[dim]) if index not in gone]
    values = torch.index_select(old.detach(), dim, torch.tensor(kept, device=old.device))
    setattr(module, name, nn.Parameter(values, requires_grad=old.requires_grad))


def _narrow_module(module: nn.Module, axis: str, gone: list[int]) -> None:
    trained: Mapping[str, bool] = {
        name: parameter.requires_grad for name, parameter in module.named_parameters()
    }
    statistics = _without_statistics(module)
    pruner: Any = module_pruner(module)
    if axis == "out":
        pruner.prune_out_channels(module, gone)
    else:
        pruner.prune_in_channels(module, gone)
    _put_back(module, statistics, gone)
    for name, parameter in module.named_parameters():  # torch-pruning makes all of them trainable
        parameter.requires_grad_(trained.get(name, True))


def _without_statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """Take a batch norm's running statistics off it.

    torch-pruning would index them, which on tensors without data imports sympy: two seconds.
    """
    if not getattr(module, "track_running_stats", False):
        return {}
    setattr(module, "track_running_stats", False)  # noqa: B010 - of norms alone
    return {name: getattr(module, name) for name in ("running_mean", "running_var")}


def _put_back(module: nn.Module, statistics: Mapping[str, torch.Tensor], gone: list[int]) -> None:
    if not statistics:
        return
    setattr(module, "track_running_stats", True)  # noqa: B010 - of norms alone
    dropped = set(gone)
    for name, values in statistics.items():
        kept = [index for index in range(len(values)) if index not in dropped]
        setattr(
            module, name, torch.index_select(values, 0, torch.tensor(kept, device=values.device))
        )
