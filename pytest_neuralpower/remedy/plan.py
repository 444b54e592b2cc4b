"""Plan: what was removed from a model, as a JSON file that removes the same from a fresh one."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from pytest_neuralpower.errors import RemedyError
from pytest_neuralpower.files import write_atomically

__all__ = ["Granularity", "Plan", "read_plan", "write_plan"]

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
    RemedyError
        The file cannot be read, is no plan, or is a plan of a later version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RemedyError(f"{path}: {error.strerror}; `neuralpower prune` writes plans") from None
    except ValueError as error:
        raise RemedyError(f"{path} is no JSON: {error}; `neuralpower prune` writes plans") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise RemedyError(f"{path} is no plan; `neuralpower prune` writes plans")
    version = data.pop("version", None)
    if version != VERSION:
        raise RemedyError(
            f"{path} is a plan of version {version!r}, this release reads {VERSION}; "
            "update pytest-neuralpower or make the plan again"
        )
    try:
        masks = {name: _Packed(**each).mask() for name, each in data.pop("masks").items()}
        channels = {name: tuple(units) for name, units in data.pop("channels").items()}
        inputs = tuple(data.pop("inputs"))
        return Plan(**data, inputs=inputs, masks=masks, channels=channels)
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise RemedyError(f"{path} is a damaged plan ({error}); make it again") from None
