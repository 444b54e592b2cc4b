"""A copy of a model that can be looked at with channels removed, and is whole again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_neuralpower.errors import UnsupportedGraphError
from pytest_neuralpower.remedy.model_copy import copy_without_values, kept_as_they_are
from pytest_neuralpower.remedy.narrowing import remove_units, touched_modules
from pytest_neuralpower.remedy.torch_pruning import follow
from pytest_neuralpower.remedy.without_kernels import WithoutKernels
from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import input_tensors, map_inputs, without_data

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.remedy.channels import ChannelGroup
    from pytest_neuralpower.remedy.torch_pruning import Coupling

__all__ = ["NarrowedCopy", "Seen"]


@dataclass(frozen=True)
class Seen:
    """One trace, and the shapes of the parameters and of the outputs."""

    trace: Trace
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
        try:
            self.model = copy.deepcopy(model) if with_values else copy_without_values(model)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UnsupportedGraphError(
                f"cannot copy {type(model).__name__} to look at it with other widths: {reason}; "
                "remove hooks, computed weights (weight_norm) and open files from the model"
            ) from error
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)  # torch-pruning follows gradients
        self._args, self._kwargs = args, kwargs
        self._with_values = with_values

    def follow(self) -> list[Coupling]:
        """Which channels belong together."""
        modes = {module: module.training for module in self.model.modules()}
        args, kwargs = map_inputs((tuple(self._args), dict(self._kwargs)), self._input)
        mode = nullcontext() if self._with_values else WithoutKernels()

        def run(model: nn.Module) -> Any:
            with mode:
                return model(*args, **kwargs)

        try:
            return follow(self.model, run)
        finally:
            for module, training in modes.items():
                module.training = training

    def _input(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._with_values:
            return without_data(tensor)
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

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
