"""A copy of a model that can be looked at with channels removed, and is whole again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_neuralpower.remedy.layer_sizes import form, read_sizes
from pytest_neuralpower.remedy.model_copy import copy_without_values, kept_as_they_are
from pytest_neuralpower.remedy.narrowing import remove_units, touched_modules
from pytest_neuralpower.remedy.torch_pruning import follow
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import input_tensors, map_inputs

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.remedy.channels import ChannelGroup
    from pytest_neuralpower.remedy.torch_pruning import Coupling

__all__ = ["NarrowedCopy", "Seen"]


@dataclass(frozen=True)
class Seen:
    """One trace: layers, their forms and sizes, shapes of the parameters and of the outputs."""

    trace: Trace
    forms: list[Layer]
    sizes: list[tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    outputs: list[tuple[int, ...]]


class NarrowedCopy:
    """A copy of ``model`` without values (or with them) and the inputs of one call."""

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        with_values: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model) if with_values else copy_without_values(model)
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)  # torch-pruning follows gradients
        self._args, self._kwargs = args, kwargs
        self._device = None if with_values else "meta"

    def follow(self) -> list[Coupling]:
        """Which channels belong together."""
        modes = {module: module.training for module in self.model.modules()}
        args, kwargs = map_inputs((tuple(self._args), dict(self._kwargs)), self._input)
        try:
            return follow(self.model, lambda model: model(*args, **kwargs))
        finally:
            for module, training in modes.items():
                module.training = training

    def _input(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device is not None:
            return tensor.to(self._device)
        if tensor.is_meta:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor

    def look(self) -> Seen:
        """Trace the copy as it is."""
        outputs: list[tuple[int, ...]] = []

        def record(_module: nn.Module, _inputs: Any, found: Any) -> None:
            values = (
                getattr(found, "__dict__", found)
                if not isinstance(found, torch.Tensor | dict | list | tuple)
                else found
            )
            outputs[:] = [tuple(tensor.shape) for tensor in input_tensors(values)]

        handle = self.model.register_forward_hook(record)
        try:
            traced = trace(self.model, *self._args, **self._kwargs)
        finally:
            handle.remove()
        return Seen(
            traced,
            [form(layer) for layer in traced],
            [read_sizes(layer) for layer in traced],
            {name: tuple(each.shape) for name, each in self.model.named_parameters()},
            outputs,
        )

    def without(self, removed: Mapping[str, Sequence[int]], groups: Iterable[ChannelGroup]) -> Seen:
        """Trace the copy with some units of some groups removed; it is whole again afterwards."""
        chosen = [group for group in groups if group.name in removed]
        slots = [slot for group in chosen for slot in group.slots]
        with kept_as_they_are(touched_modules(self.model, slots)), torch.no_grad():
            remove_units(self.model, [(group, removed[group.name]) for group in chosen])
            return self.look()
