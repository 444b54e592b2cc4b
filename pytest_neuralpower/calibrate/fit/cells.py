"""Networks of NAS-Bench-201 on a board without a row, priced by its datasheet and by other boards.

All 15,625 networks are sums of the same few layers, so each operation is priced once a stage
(Dong, Yang, "NAS-Bench-201", ICLR 2020; times from Lee et al., "HELP", NeurIPS 2021).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.readers import read_table
from pytest_neuralpower.calibrate.fit.rows import (
    conv_layer,
    linear_layer,
    pool_layer,
    streaming_layer,
)
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.platform.price import FittedPlatform

OPERATIONS: Final = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

TABLE: Final = "help/nasbench201_latency_ms.csv.gz"

#: Channels and output size of each of the three stages; cells in each.
_STAGES: Final = ((16, 32), (32, 16), (64, 8))
_CELLS: Final = 5

_EDGES: Final = 6
_OPERATION: Final = re.compile(r"(\w+)~\d")

#: Deviation of the logarithm of a factor that all layers of a stack have in common, and of the
#: error of one measured network about the sum of its layers.
_COMMON: Final = 0.3
_ROW: Final = 0.05

_Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cells:
    """Networks of one device and batch.

    Attributes
    ----------
    operations
        Place in :data:`OPERATIONS` of each of the six edges' operations, shape ``(networks, 6)``.
    runtime_ms
        Measured, shape ``(networks,)``.
    """

    operations: np.ndarray
    runtime_ms: FloatArray

    @property
    def counts(self) -> FloatArray:
        """How many edges run each operation, shape ``(networks, 5)``."""
        return np.stack(
            [(self.operations == place).sum(axis=1) for place in range(len(OPERATIONS))], axis=1
        ).astype(np.float64)


def read_cells(data_root: Path, device: str, batch: int) -> Cells:
    """Measured networks; raises ProfileError without the table."""
    operations, runtime = [], []
    for _, record in read_table(data_root / TABLE):
        if record["device"] == device and int(record["batch"]) == batch:
            names = _OPERATION.findall(record["architecture"])
            operations.append([OPERATIONS.index(name) for name in names])
            runtime.append(float(record["latency_ms"]))
    return Cells(np.array(operations), np.array(runtime))


# -- Layers.


def _batch_norm(shape: _Shape) -> Layer:
    made = streaming_layer("norm", "batch_norm", [shape], shape)
    weights = (TensorSpec((shape[1],), "float32"),) * 4
    return replace(made, weights=weights, params=(("training", False),))


def _normal_conv(shape: _Shape, cout: int, kernel: int, stride: int = 1) -> list[Layer]:
    """ReLU, convolution, batch norm."""
    made = conv_layer(
        shape,
        cout=cout,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
    )
    relu = streaming_layer("activation", "relu", [shape], shape)
    return [relu, made, _batch_norm(made.outputs[0].shape)]


def _add(shape: _Shape, *, two: bool = True) -> Layer:
    return streaming_layer("elementwise", "add", [shape] * (2 if two else 1), shape)


def _operation(name: str, shape: _Shape) -> list[Layer]:
    """Layers of one edge."""
    if name == "none":  # x * 0
        return [streaming_layer("elementwise", "mul", [shape], shape)]
    if name == "avg_pool_3x3":
        window = ((3, 3), (1, 1), (1, 1))
        kernel, stride, padding = window
        return [
            pool_layer(shape, shape, op="avg_pool2d", kernel=kernel, stride=stride, padding=padding)
        ]
    if name == "skip_connect":
        return []
    return _normal_conv(shape, shape[1], 3 if name == "nor_conv_3x3" else 1)


def _reduction(shape: _Shape, cout: int) -> list[Layer]:
    """The residual block of stride 2 between two stages."""
    batch, channels, size, _ = shape
    half = (batch, cout, size // 2, size // 2)
    pooled = (batch, channels, size // 2, size // 2)
    shortcut = [
        pool_layer(shape, pooled, op="avg_pool2d", kernel=(2, 2), stride=(2, 2), padding=(0, 0)),
        conv_layer(pooled, cout=cout, kernel=(1, 1), stride=(1, 1), padding=(0, 0)),
    ]
    both = [*_normal_conv(shape, cout, 3, 2), *_normal_conv(half, cout, 3)]
    return [*both, *shortcut, _add(half)]


def _fixed(batch: int) -> list[Layer]:
    """What every network runs beside the operations of its edges."""
    shapes = [(batch, channels, size, size) for channels, size in _STAGES]
    image = (batch, 3, 32, 32)
    stem = conv_layer(image, cout=16, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    layers = [stem, _batch_norm(shapes[0])]
    for before, after in pairwise(shapes):
        layers += _reduction(before, after[1])
    # Each of a cell's three nodes is 0 plus what its edges bring.
    sums = [two for edges in (1, 2, 3) for two in (False, *(True,) * (edges - 1))]
    layers += [_add(shape, two=two) for shape in shapes for _ in range(_CELLS) for two in sums]
    last = shapes[-1]
    relu = streaming_layer("activation", "relu", [last], last)
    pooled = (batch, last[1], 1, 1)
    pool = streaming_layer("pool", "adaptive_avg_pool2d", [last], pooled)
    return [*layers, _batch_norm(last), relu, pool, linear_layer(batch, 64, 10, bias=True)]


def network_layers(operations: Sequence[int], batch: int) -> list[Layer]:
    """Every layer of one network, from the places of its six edges' operations."""
    layers = _fixed(batch)
    for channels, size in _STAGES:
        shape = (batch, channels, size, size)
        for place in operations:
            layers += _operation(OPERATIONS[place], shape) * _CELLS
    return layers


# -- Prices.


def price_cells(
    platform: FittedPlatform, cells: Cells, batch: int
) -> tuple[Mapping[str, FloatArray], FloatArray]:
    """Time of every network by group of layers, and in total, ms.

    Groups are what one factor each may correct: kinds, convolutions of 3 x 3 apart.
    """
    parts = [_by_group(platform, _fixed(batch))]
    for name in OPERATIONS:
        layers = [
            layer
            for channels, size in _STAGES
            for layer in _operation(name, (batch, channels, size, size))
        ]
        parts.append(_by_group(platform, layers * _CELLS) if layers else {})
    counts = np.column_stack([np.ones(len(cells.runtime_ms)), cells.counts])
    groups = dict.fromkeys(name for part in parts for name in part)
    found = {
        name: np.asarray(counts @ np.array([part.get(name, 0.0) for part in parts]))
        for name in groups
    }
    return found, np.asarray(np.sum(list(found.values()), axis=0))


def _by_group(platform: FittedPlatform, layers: Sequence[Layer]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in platform.predict(layers).layers:
        layer = each.layer
        group = layer.kind
        if layer.kind == "conv":
            group += " 3x3" if layer.weights[0].shape[-1] == 3 else " 1x1"
        found[group] = found.get(group, 0.0) + (each.runtime_ms or 0.0)
    return found


def sharpened(
    groups: Mapping[str, FloatArray],
    measured_ms: Mapping[int, float],
    deviations: Mapping[str, float],
) -> FloatArray:
    """Time of every network when a few of them were measured.

    The logarithm of each group's factor is normal about 0, that of a common factor as well; the
    few measured networks move them (maximum posterior, pseudo-Huber loss).

    Parameters
    ----------
    groups
        From :func:`price_cells`.
    measured_ms
        By place of the network, what it took.
    deviations
        Of the logarithm of each group's factor.
    """
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    table = np.stack(list(groups.values()))
    places = np.array(list(measured_ms))
    target = np.log(np.array(list(measured_ms.values())))
    scale = np.array([_COMMON, *(deviations[name] for name in groups)])

    def price(unit: FloatArray, which: np.ndarray | slice) -> FloatArray:
        logs = unit * scale
        return np.asarray(np.exp(logs[0]) * (np.exp(logs[1:]) @ table[:, which]))

    def errors(unit: FloatArray) -> FloatArray:
        off = (np.log(price(unit, places)) - target) / _ROW
        # Pseudo-Huber on the rows alone: its square root, signed.
        robust = np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off**2) - 1.0))
        return np.concatenate([robust, unit])

    found = least_squares(errors, np.zeros(len(scale)))
    return price(found.x, slice(None))
