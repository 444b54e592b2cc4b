"""Profiles: measured layers of one device as a CSV file that people and programs can write.

The file starts with provenance lines, ``# key: value`` (device, date, library versions, how it
was measured), then a header, then one measured layer a line::

    # device: NVIDIA GeForce GTX 1080 Ti
    # dtype: float32
    kind,op,inputs,weights,outputs,params,runtime_ms,power_w
    conv,conv2d,8x64x56x56,128x64x3x3,8x128x56x56,padding=1x1;stride=1x1,0.913,212.5

``inputs``, ``weights`` and ``outputs`` are shapes separated by ``;``, each with ``:dtype`` where
it is not the profile's own. ``params`` are the layer's hyper-parameters (see
:class:`pytest_neuralpower.layers.Layer`), tuples as ``1x1``. ``op`` and ``params`` may be empty.
``runtime_ms`` is required; ``power_w`` (mean gross board power) or ``energy_mj`` is optional.

A profile that ``neuralpower calibrate`` wrote has the columns of :data:`CALIBRATED` too: which
trial of the plan a row comes of, when and on which device. There a row of kind ``network`` is a
call of a whole network, a ``what`` of ``layer`` or ``whole`` was run alone under the meter, and a
later line ``# skipped TRIAL: reason`` notes what could not be measured.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.calibrate.fit.rows import Measurement, Row, layer_rows, network_rows
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.files import read_text
from pytest_neuralpower.layer_codec import (
    params_text,
    read_dtype,
    read_params,
    read_tensors,
    tensors_text,
)
from pytest_neuralpower.layers import KINDS, Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_neuralpower.calibrate.fit.rows import NetworkRow

REQUIRED: Final = ("kind", "inputs", "outputs", "runtime_ms")
OPTIONAL: Final = ("op", "weights", "params", "dtype", "power_w", "energy_mj")
#: Further columns of a profile that was measured by trials.
CALIBRATED: Final = (
    "trial", "what", "network", "seed", "index", "calls", "pass", "wall_ms", "probe_ms", "when",
    "device_uuid", "temperature_c", "clock_mhz", "flaw",
)  # fmt: skip

#: What stands in ``kind`` for a call of a whole network.
NETWORK: Final = "network"


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured rows of one device and the provenance lines above them.

    Attributes
    ----------
    rows
        Layers, each once: passes are merged.
    provenance
        By key.
    measurements
        Every line as it was measured; empty for a profile without trials.
    networks
        Whole networks with their layers, each once; empty for a profile without trials.
    """

    rows: tuple[Row, ...]
    provenance: Mapping[str, str]
    measurements: tuple[Measurement, ...] = ()
    networks: tuple[NetworkRow, ...] = ()


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises
    ------
    ProfileError
        The file or one of its lines cannot be used; one line names it and what it should be.
    """
    lines = read_text(path, file=f"profile {path}", error=ProfileError).split("\n")
    provenance = read_provenance(lines)
    dtype = provenance.get("dtype", "float32")
    numbered = [
        (number, line)
        for number, line in enumerate(lines[len(provenance) :], start=len(provenance) + 1)
        if not line.startswith("#")
    ]
    number, line = numbered[0] if numbered else (1, "")
    names = _cells(path, number, line)
    _check_header(path, names)
    found = []
    for number, line in numbered[1:]:
        cells = _cells(path, number, line)
        if not cells:
            continue
        try:
            if len(cells) != len(names):
                raise ValueError(f"{len(cells)} cells under {len(names)} columns")
            found.append(_measurement(dict(zip(names, cells, strict=True)), dtype, number))
        except (ValueError, TypeError, AttributeError) as error:
            raise ProfileError(f"profile {path}, line {number}: {error}") from None
    by_trials = "trial" in names
    rows = layer_rows(found) if by_trials else [each.row for each in found]
    if not rows:
        raise ProfileError(f"profile {path}: no measured rows; write one layer a line")
    if not by_trials:
        return Profile(tuple(rows), provenance)
    return Profile(tuple(rows), provenance, tuple(found), tuple(network_rows(found)))


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:  # a cell of more than 131,072 characters
        raise ProfileError(f"profile {path}, line {number}: {error}") from None


def read_provenance(lines: Sequence[str]) -> dict[str, str]:
    """The ``# key: value`` lines at the head of a profile."""
    provenance: dict[str, str] = {}
    for line in lines:
        if not line.startswith("#"):
            break
        key, _, value = line.lstrip("# ").partition(":")
        provenance[key.strip()] = value.strip()
    return provenance


def _check_header(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise ProfileError(
            f"profile {path}: no column {missing[0]!r}; columns are {', '.join(REQUIRED)} and, "
            f"if known, {', '.join(OPTIONAL)}"
        )
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL + CALIBRATED]
    if unknown:
        raise ProfileError(
            f"profile {path}: unknown column {unknown[0]!r}; columns are "
            f"{', '.join(REQUIRED + OPTIONAL)}"
        )


def _measurement(record: Mapping[str, str], dtype: str, line: int) -> Measurement:
    kind = record["kind"]
    if kind not in KINDS and not (kind == NETWORK and record.get("trial")):
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    dtype = read_dtype(record.get("dtype") or dtype)
    layer = Layer(
        kind,
        record.get("op") or kind,
        "",
        read_tensors(record["inputs"], dtype),
        read_tensors(record.get("weights") or "", dtype),
        read_tensors(record["outputs"], dtype),
        dtype,
        read_params(record.get("params") or ""),
    )
    if kind != NETWORK:
        _check_tensors(layer)
    runtime = _number(record, "runtime_ms")
    power = _number(record, "power_w") if record.get("power_w") else None
    if power is None and record.get("energy_mj"):
        power = _number(record, "energy_mj") / runtime
    row = Row(layer, runtime, power, line, record.get("flaw") or "")
    return Measurement(
        row=row,
        trial=record.get("trial") or "",
        what=record.get("what") or "network",
        network=record.get("network") or "",
        seed=int(record.get("seed") or 0),
        index=int(record.get("index") or 0),
        calls=int(record.get("calls") or 1),
        pass_=int(record.get("pass") or 1),
        wall_ms=_number(record, "wall_ms") if record.get("wall_ms") else None,
        probe_ms=_number(record, "probe_ms") if record.get("probe_ms") else None,
        device_uuid=record.get("device_uuid") or "",
    )


#: What a row must have of the kinds whose cost follows from more than the sizes of its tensors.
_NEEDED: Final = {
    "conv": "inputs NxCxHxW, weights CoutxCxKHxKW and outputs NxCoutxHxW",
    "linear": "inputs ...xK, weights NxK and outputs ...xN",
    "matmul": "inputs ...xMxK;...xKxN and outputs ...xMxN",
    "attention": "inputs of query, key and value, each BxHxLxE",
    "rnn": "inputs, and the params mode, hidden_size, num_layers, bidirectional and steps",
    "pool": "inputs NxCxHxW and outputs NxCxHxW",
}


def _check_tensors(layer: Layer) -> None:
    """Raise ValueError if the layer has not the tensors, or axes, that its kind is priced by."""
    given = {"inputs": layer.inputs, "weights": layer.weights, "outputs": layer.outputs}
    for what, tensors in given.items():
        if any(min(tensor.shape, default=1) < 1 for tensor in tensors):
            text = tensors_text(tensors, layer.dtype)
            raise ValueError(f"{what} {text!r}: sizes are 1 or more, such as 8x64x56x56")
    shapes = ", ".join(
        f"{what} {tensors_text(tensors, layer.dtype) or 'empty'}" for what, tensors in given.items()
    )
    needed = _NEEDED.get(layer.kind, "inputs and outputs")
    problem = ValueError(f"{layer.kind} has {shapes}; it needs {needed}")
    if not layer.outputs:
        raise problem
    try:
        with np.errstate(all="ignore"):
            values = columns(family(layer), [layer])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        raise problem from None
    odd = [name for name, value in values.items() if not np.isfinite(value).all()]
    if odd:  # groups of 0, a stride of 0
        params = params_text(layer.params) or "no params"
        raise ValueError(f"{layer.kind} has {shapes} and {params}: its {odd[0]} is no number")


def _number(record: Mapping[str, str], column: str) -> float:
    try:
        value = float(record[column])
    except ValueError:
        raise ValueError(f"{column} {record[column]!r} is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{column} {record[column]!r} must be positive: measure it again")
    return value
