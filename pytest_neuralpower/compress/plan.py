"""Fingerprints of a model: of its structure, and of its weights' values."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import pickle
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from pytest_neuralpower.compress.inputs import as_call
from pytest_neuralpower.errors import CompressError
from pytest_neuralpower.files import write_atomically

__all__ = [
    "Granularity",
    "Plan",
    "apply_plan",
    "load_state",
    "load_tensors",
    "read_plan",
    "save_state",
    "structure_hash",
    "weights_hash",
    "write_plan",
]


def structure_hash(model: nn.Module) -> str:
    """SHA-256 of the modules' classes and of the names, shapes and dtypes of their tensors."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__}\n".encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    return digest.hexdigest()


def weights_hash(state: Mapping[str, object]) -> str:
    """SHA-256 of the values in a state dict, bit for bit, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# -- Files of tensors: state dicts and data, read as data alone and written whole.


def load_tensors(path: Path | str) -> Any:
    """What ``torch.save`` wrote, data alone.

    Raises
    ------
    CompressError
        The file cannot be read, or has more than data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CompressError(f"{path}: {error.strerror}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CompressError(f"{path} holds no tensors saved by torch.save: {reason}") from None


def load_state(path: Path | str) -> Mapping[str, torch.Tensor]:
    """A state dict from its file; raises :class:`CompressError` for anything else."""
    state = load_tensors(path)
    if not isinstance(state, Mapping):
        raise CompressError(
            f"{path} is no state dict: write it with torch.save(model.state_dict())"
        )
    return state


def save_state(model: nn.Module, path: Path | str) -> None:
    """Write the model's state dict, all of it or nothing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        torch.save(model.state_dict(), name)
        Path(name).chmod(0o644)  # mkstemp's file is private
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# -- Plan: what was removed from a model, as a JSON file that removes the same from a fresh one.

Granularity = Literal["channel", "weight"]

FORMAT: Final = "pytest-neuralpower plan"
VERSION: Final = 1


@dataclass(frozen=True)
class Plan:
    """What was removed, from which model, for which platform and budget.

    Attributes
    ----------
    structure, weights
        Fingerprints of the model that it was made for.
    pruned_weights
        Fingerprint of the weights that came out.
    masks
        By parameter name, which weights stay (weight granularity).
    channels
        By channel group, the units that stay (channel granularity).
    layers
        Share of each layer's weights, or of each group's channels, that stays.
    """

    model: str
    structure: str
    weights: str
    pruned_weights: str
    platform: str
    platform_sha256: str
    granularity: Granularity
    quantity: str
    limit: float
    batch: int
    inputs: tuple[str, ...]
    before: float
    after: float
    met: bool
    layers: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The plan in JSON types; masks as zlib-packed bits in base64."""
        plain = {name: value for name, value in vars(self).items() if name != "masks"}
        return {
            "format": FORMAT,
            "version": VERSION,
            **plain,
            "inputs": list(self.inputs),
            "layers": dict(self.layers),
            "channels": {name: list(units) for name, units in self.channels.items()},
            "masks": {name: asdict(_Packed.of(mask)) for name, mask in self.masks.items()},
        }


@dataclass(frozen=True)
class _Packed:
    """A mask as text."""

    shape: tuple[int, ...]
    kept: int
    bits: str

    @classmethod
    def of(cls, mask: torch.Tensor) -> _Packed:
        bits = np.packbits(mask.cpu().numpy().ravel())
        text = base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()
        return cls(tuple(mask.shape), int(mask.sum()), text)

    def mask(self) -> torch.Tensor:
        raw = np.frombuffer(zlib.decompress(base64.b64decode(self.bits)), dtype=np.uint8)
        size = int(np.prod(self.shape))
        mask = torch.from_numpy(np.unpackbits(raw, count=size).astype(bool)).view(self.shape)
        if int(mask.sum()) != self.kept:
            raise ValueError(f"a mask has {int(mask.sum())} bits set, not {self.kept}")
        return mask


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write the plan's file, all of it or nothing."""
    write_atomically(Path(path), json.dumps(plan.to_json(), indent=1) + "\n")


def read_plan(path: Path | str) -> Plan:
    """Read what :func:`write_plan` wrote.

    Raises
    ------
    CompressError
        The file cannot be read, is no plan, or is a plan of a later version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CompressError(f"{path}: {error.strerror}; `neuralpower prune` writes plans") from None
    except ValueError as error:
        raise CompressError(
            f"{path} is no JSON: {error}; `neuralpower prune` writes plans"
        ) from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CompressError(f"{path} is no plan; `neuralpower prune` writes plans")
    version = data.pop("version", None)
    if version != VERSION:
        raise CompressError(
            f"{path} is a plan of version {version!r}, this release reads {VERSION}; "
            "update pytest-neuralpower or make the plan again"
        )
    try:
        masks = {name: _Packed(**each).mask() for name, each in data.pop("masks").items()}
        channels = {name: tuple(units) for name, units in data.pop("channels").items()}
        inputs = tuple(data.pop("inputs"))
        return Plan(**data, inputs=inputs, masks=masks, channels=channels)
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise CompressError(f"{path} is a damaged plan ({error}); make it again") from None


# -- ``apply_plan``: remove from a fresh model what a plan removed.


def apply_plan(
    model: nn.Module,
    plan: Plan | str | Path,
    *,
    inputs: Any = None,
    weights: Mapping[str, torch.Tensor] | str | Path | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Remove from ``model`` what the plan removed.

    Parameters
    ----------
    model
        Of the structure that the plan was made for.
    inputs
        The call; needed where channels are removed, and taken as zeros of the plan's shapes where
        it is left out.
    weights
        The pruned weights (a state dict or its file): with them the model gives the same bits as
        the one that was pruned. Without them the model keeps its own, as far as they are left.
    inplace
        Change ``model`` itself, not a copy.

    Raises
    ------
    CompressError
        The plan is of another model, or the weights are not those that came out of it.
    """
    found = plan if isinstance(plan, Plan) else read_plan(plan)
    if structure_hash(model) != found.structure:
        raise CompressError(
            f"the plan was made for another {found.model}: modules or shapes of this "
            f"{type(model).__name__} differ; build the model as it was, or prune again"
        )
    work = model if inplace else copy.deepcopy(model)
    if found.granularity == "channel":
        _remove_channels(work, found, inputs)
    else:
        parameters = dict(work.named_parameters())
        with torch.no_grad():
            for name, mask in found.masks.items():
                values = parameters[name]
                values.copy_(torch.where(mask.to(values.device), values, 0.0))
    if weights is not None:
        state = weights if isinstance(weights, Mapping) else load_state(weights)
        if weights_hash(state) != found.pruned_weights:
            raise CompressError(
                "the weights are not those that this plan came with; give the file that "
                "`neuralpower prune` wrote beside it"
            )
        # A model on the meta device, as `neuralpower.build` makes it, has no values to copy into.
        work.load_state_dict(state, assign=any(each.is_meta for each in work.parameters()))
    return work


def _remove_channels(model: nn.Module, plan: Plan, inputs: Any) -> None:
    from pytest_neuralpower.compress.find_groups import (  # noqa: PLC0415
        find_channel_groups,
        remove_units,
    )
    from pytest_neuralpower.model_source import parse_inputs  # noqa: PLC0415

    if inputs is None:
        args, kwargs = parse_inputs(plan.inputs)
        call = as_call(args)._replace(kwargs=kwargs)
    else:
        call = as_call(inputs)
    was = {module: module.training for module in model.modules()}
    groups = find_channel_groups(model.eval(), call.args, call.kwargs)
    for module, training in was.items():
        module.training = training
    removed = []
    for name, units in plan.channels.items():
        group = groups[name]
        gone = sorted(set(range(group.units)) - set(units))
        if gone:
            removed.append((group, gone))
    remove_units(model, removed)
