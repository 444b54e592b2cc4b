"""Plan: what was removed from a model, as a JSON file that removes the same from a fresh one."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch
from msgspec import Struct
from torch import nn

from pytest_neuralpower.compress.find_groups import find_channel_groups, remove_units
from pytest_neuralpower.errors import CompressError
from pytest_neuralpower.files import decode, read_text, shown, write_atomically
from pytest_neuralpower.model_source import Call, as_call, parse_inputs

Granularity = Literal["channel", "weight"]

#: Values of the largest parameter that a mask can have.
_MOST_BITS: Final = 2**31

FORMAT: Final = "pytest-neuralpower plan"
VERSION: Final = 1


class Mask(Struct, frozen=True, forbid_unknown_fields=True):
    """Which values of a parameter stay: zlib-packed bits in base64, of which ``kept`` are set."""

    shape: tuple[int, ...]
    kept: int
    bits: str

    def __post_init__(self) -> None:
        """Raises ValueError for bits that are damaged."""
        if len(self.shape) > 64 or not 0 < math.prod(self.shape) <= _MOST_BITS:
            raise ValueError(f"a mask has no shape {shown(self.shape)}")
        try:
            count = int(self.tensor().sum())
        except (zlib.error, RuntimeError, ValueError) as error:
            raise ValueError(f"its bits are damaged ({error})") from None
        if count != self.kept:
            raise ValueError(f"a mask has {count} bits set, not {self.kept}")

    @classmethod
    def of(cls, mask: torch.Tensor) -> Mask:
        bits = np.packbits(mask.cpu().numpy().ravel())
        text = base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()
        return cls(tuple(mask.shape), int(mask.sum()), text)

    def tensor(self) -> torch.Tensor:
        """Of booleans, in the parameter's shape; True stays."""
        count = math.prod(self.shape)
        packed = zlib.decompressobj()
        # No more than the shape has: few bytes unpack to gigabytes.
        raw = np.frombuffer(
            packed.decompress(base64.b64decode(self.bits), (count + 7) // 8), dtype=np.uint8
        )
        if len(raw) != (count + 7) // 8:
            raise ValueError(f"{len(raw)} bytes for {count} values")
        return torch.from_numpy(np.unpackbits(raw, count=count).astype(bool)).view(self.shape)


class Plan(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="format", tag=FORMAT
):
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

    version: Literal[1]
    model: str
    structure: str
    weights: str
    pruned_weights: str
    platform: str
    platform_sha256: str
    granularity: Granularity
    quantity: Literal["energy", "runtime"]
    limit: float
    batch: int
    inputs: tuple[str, ...]
    before: float
    after: float
    met: bool
    layers: dict[str, float]
    channels: dict[str, tuple[int, ...]]
    masks: dict[str, Mask]

    def to_json(self) -> dict[str, object]:
        """The plan in JSON types."""
        plain: dict[str, object] = msgspec.to_builtins(self)
        return plain


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write the plan's file, all of it or nothing."""
    write_atomically(Path(path), json.dumps(plan.to_json(), indent=1) + "\n")


def read_plan(path: Path | str) -> Plan:
    """Read what :func:`write_plan` wrote.

    Raises
    ------
    CompressError
        The file cannot be read, or is not a plan of this version; one line names the field.
    """
    file = f"plan {path}"
    return decode(
        Plan,
        read_text(Path(path), file=file, error=CompressError),
        file=file,
        error=CompressError,
        renew="make the plan again with `neuralpower prune`, or update pytest-neuralpower",
    )


#: How errors of a plan that fits the model in part end.
_AGAIN: Final = ": it was edited by hand; prune again"


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
    if not isinstance(plan, Plan):
        plan = read_plan(plan)
    if structure_hash(model) != plan.structure:
        raise CompressError(
            f"the plan was made for another {plan.model}: modules or shapes of this "
            f"{type(model).__name__} differ; build the model as it was, or prune again"
        )
    work = model if inplace else copy.deepcopy(model)
    if plan.granularity == "channel":
        _remove_channels(work, plan, inputs)
    shapes = {
        name: tuple(values.shape) for name, values in work.named_parameters(remove_duplicate=False)
    }
    for name, mask in plan.masks.items():
        if shapes.get(name) != mask.shape:
            raise CompressError(
                f"the plan masks {name!r} of shape {mask.shape}, the model has "
                f"{shapes.get(name, 'no such parameter')}{_AGAIN}"
            )
    with torch.no_grad():
        for name, mask in plan.masks.items():
            values = work.get_parameter(name)
            values.copy_(torch.where(mask.tensor().to(values.device), values, 0.0))
    if weights is not None:
        state = weights if isinstance(weights, Mapping) else load_state(weights)
        if weights_hash(state) != plan.pruned_weights:
            raise CompressError(
                "the weights are not those that this plan came with; give the file that "
                "`neuralpower prune` wrote with it"
            )
        # A model on the meta device, as `neuralpower.build` makes it, has no values to copy into.
        work.load_state_dict(
            state, assign=any(parameter.is_meta for parameter in work.parameters())
        )
    return work


def _remove_channels(model: nn.Module, plan: Plan, inputs: Any) -> None:
    if inputs is None:
        args, kwargs = parse_inputs(plan.inputs)
        call = Call(tuple(args), kwargs)
    else:
        call = as_call(inputs)
    was = {module: module.training for module in model.modules()}
    groups = find_channel_groups(model.eval(), call.args, call.kwargs)
    for module, training in was.items():
        module.training = training
    removed = []
    for name, units in plan.channels.items():
        group = groups[name]
        if not units or not set(units) <= set(range(group.units)):
            raise CompressError(
                f"the plan keeps channels {shown(units)} of {name!r}, which has "
                f"{group.units}{_AGAIN}"
            )
        removed.append((group, sorted(set(range(group.units)) - set(units))))
    remove_units(model, removed)


# -- Fingerprints of a model: of its structure, and of its weights' values.


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
    if not Path(path).is_file():
        raise CompressError(f"{path}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CompressError(f"{path}: {error.strerror}") from None
    except Exception as error:  # torch's unpickler fails on other bytes in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CompressError(f"{path} has no tensors saved by torch.save: {reason}") from None


def load_state(path: Path | str) -> Mapping[str, torch.Tensor]:
    """A state dict from its file; raises :class:`CompressError` for anything else."""
    state = load_tensors(path)
    if not isinstance(state, Mapping):
        raise CompressError(
            f"{path} is not a state dict: write it with torch.save(model.state_dict())"
        )
    return state


def save_state(model: nn.Module, path: Path | str) -> None:
    """Write the model's state dict, all of it or nothing."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    write_atomically(Path(path), buffer.getvalue())
