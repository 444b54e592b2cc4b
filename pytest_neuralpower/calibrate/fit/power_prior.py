"""Power of boards that nobody metered, by those whose layers or networks were.

A board rises from idle towards its limit with the joules that its work takes: so many an operation,
of plain cores and of tensor cores, so many a byte, and a share of its range for being awake. What
metered boards showed is scaled to another's peak, bandwidth, process, idle power and limit. How
wrong that is is told by leaving out one whole board after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import numpy as np
import yaml
from msgspec import structs

from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.power import load_networks, trace_network
from pytest_neuralpower.calibrate.fit.readers import READERS
from pytest_neuralpower.estimators import Utilization
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import plain_core_joules

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.platform.price import FittedPlatform

#: Shorter readings are those of a loop of a third of a second, three samples of the meter.
_LEAST_MS: Final = 0.1

#: A loop over kernels pauses between them: rows of this length read half the share of being awake
#: that a call's kernels keep up. Of 0, 0.02, 0.05, 0.1 and 0.2 ms the one of least error on boards
#: left out.
_PAUSES_MS: Final = 0.05

#: Rows of less read what a board draws that waits more than it works.
_WAITING_MS: Final = 0.01

#: Rows of one table that are fitted to, at most; all are judged.
_MOST_ROWS: Final = 300

#: Logarithmic errors beyond this count by their size, not their square.
_OUTLYING: Final = 0.1

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class PowerPrior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What metered boards draw, for one that was not.

    Attributes
    ----------
    base
        Load of a board that is awake; a load of 1 draws 63% of the range from idle to the limit.
    tensor_pj
        Of an operation on tensor cores in 16 bits, pJ, in a process of 5 nm.
    byte_pj
        Of a byte that is moved, pJ.
    waiting
        Load of a board whose calls wait for the host.
    left_out
        By device, mean absolute error of the power of its rows or networks, in percent, by the
        other devices.
    factor
        Holds 90% of the rows of every device that was left out.
    alike
        Share of the variance that all layers of one kind on one device have in common.
    """

    base: _NotNegative
    tensor_pj: _NotNegative
    byte_pj: _NotNegative
    waiting: _NotNegative = 0.0
    left_out: Mapping[str, float] = {}
    factor: _Positive = 1.0
    alike: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0

    def on(
        self, hardware: Mapping[str, float], peaks_gflops: Mapping[str, float], dtype: str
    ) -> Utilization:
        """The model of power of a board; its ``hardware`` needs ``idle_w`` and ``limit_w``."""
        range_w = hardware["limit_w"] - hardware["idle_w"]
        if dtype in ("float32", "float64"):
            joules = plain_core_joules(hardware["process_nm"])
            compute = joules * hardware["peak_gflops"] * 1e9
        else:  # whatever the width of their operands, tensor cores at their peak draw alike
            half = max(peaks_gflops.get(each, 0.0) for each in ("float16", "bfloat16"))
            scale = plain_core_joules(hardware["process_nm"]) / plain_core_joules(5)
            compute = self.tensor_pj * scale * 1e-3 * (half or hardware["peak_gflops"])
        load = {
            "base": self.base,
            "compute": compute / range_w,
            "bandwidth": self.byte_pj * 1e-3 * hardware["bandwidth_gbs"] / range_w,
        }
        return Utilization(
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            limit_w=float(hardware["limit_w"]),
            idle_w=float(hardware["idle_w"]),
            waiting=self.waiting,
            load_=load,
        )

    def accuracy(self) -> dict[str, object]:
        """What a platform says of power that it has from here."""
        return {
            "devices": dict(self.left_out),
            "mape": float(f"{np.mean(list(self.left_out.values())):.3g}"),
            "factor": self.factor,
            "alike": self.alike,
        }


def transferred_power(platform: FittedPlatform, prior: PowerPrior) -> FittedPlatform:
    """The platform with the power that metered boards draw, scaled to its own limits."""
    model = prior.on(platform.hardware, platform.peaks_gflops, platform.dtype)
    model.load_ = {name: float(f"{load:.6g}") for name, load in model.load_.items()}
    return structs.replace(
        platform,
        power=model,
        tiers={**platform.tiers, "power": "transferred"},
        accuracy={**platform.accuracy, "power": prior.accuracy()},
    )


@dataclass(frozen=True, slots=True)
class _Metered:
    """One kind of layer, or whole networks, on a device: how busy it was, for how long, its power
    (W), and its load where it mostly waited (NaN where no row is so short)."""

    compute: FloatArray
    traffic: FloatArray
    runtime_ms: FloatArray
    power_w: FloatArray
    waiting: float = np.nan


@dataclass(frozen=True, slots=True)
class MeteredBoard:
    """A device whose power was read."""

    device: str
    dtype: str
    hardware: Mapping[str, float]
    peaks_gflops: Mapping[str, float]
    tables: tuple[_Metered, ...]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A board of ``power`` in ``calibration/prior.yaml``: tables of layers, or a file of networks
    that were metered as a whole."""

    datasheet: str
    dtype: str = "float32"
    sources: list[dict[str, object]] = []
    networks: str = ""


@cache
def read_metered(calibration: Path, data_root: Path) -> tuple[MeteredBoard, ...]:
    """The boards of ``power`` in ``prior.yaml`` of the folder of recipes.

    Raises
    ------
    ProfileError
        A table or the file of networks cannot be read.
    """
    known = yaml.safe_load((calibration / "prior.yaml").read_text(encoding="utf-8"))
    boards = []
    for entry in msgspec.convert(known["power"], list[_Entry]):
        device = find_device(entry.datasheet)
        hardware = device.hardware(entry.dtype)
        tables = [_metered_rows(data_root, source, hardware) for source in entry.sources]
        if entry.networks:
            tables.append(_metered_networks(calibration / entry.networks, hardware))
        peaks = device.peaks_gflops
        boards.append(MeteredBoard(device.device, entry.dtype, hardware, peaks, tuple(tables)))
    return tuple(boards)


def _metered_rows(
    data_root: Path, source: Mapping[str, object], hardware: Mapping[str, float]
) -> _Metered:
    rows = READERS[str(source["reader"])](data_root / str(source["path"]), source)
    rows = [row for row in rows if not row.flaw and row.power_w]
    short = [row.power_w or 0.0 for row in rows if row.runtime_ms < _WAITING_MS]
    rows = [row for row in rows if row.runtime_ms >= _LEAST_MS]
    values = columns(family(rows[0].layer), [row.layer for row in rows])
    found = _busy(
        values.get("scored_flops", values["flops"]),
        values["bytes_moved"],
        np.array([row.runtime_ms for row in rows]),
        np.array([row.power_w for row in rows], dtype=np.float64),
        hardware,
    )
    range_w = hardware["limit_w"] - hardware["idle_w"]
    share = (float(np.median(short or [np.nan])) - hardware["idle_w"]) / range_w
    return replace(found, waiting=float(-np.log1p(-share)))


def _metered_networks(path: Path, hardware: Mapping[str, float]) -> _Metered:
    """Whole networks by their measured time; a layer takes the mean."""
    networks = load_networks(path)
    flops, moved, layers = [], [], []
    for network in networks:
        traced = trace_network(network)
        costs = [columns(family(layer), [layer]) for layer in traced]
        flops.append(sum(float(each["flops"][0]) for each in costs))
        moved.append(sum(float(each["bytes_moved"][0]) for each in costs))
        layers.append(len(costs))
    runtime = np.array([network.paper_ms for network in networks])
    watts = np.array([network.paper_w for network in networks])
    found = _busy(np.array(flops), np.array(moved), runtime, watts, hardware)
    return replace(found, runtime_ms=runtime / np.array(layers))


def _busy(
    flops: FloatArray,
    moved: FloatArray,
    runtime_ms: FloatArray,
    power_w: FloatArray,
    hardware: Mapping[str, float],
) -> _Metered:
    compute = np.minimum(flops / (runtime_ms * hardware["peak_gflops"] * 1e6), 1.0)
    traffic = np.minimum(moved / (runtime_ms * hardware["bandwidth_gbs"] * 1e6), 1.0)
    return _Metered(compute, traffic, runtime_ms, power_w)


def fit_power_prior(boards: Sequence[MeteredBoard], *, without: str = "") -> PowerPrior:
    """The prior by all boards but one; each board counts alike, and on it each of its tables.

    Parameters
    ----------
    boards
        From :func:`read_metered`.
    without
        A device that must not have a say; by default all have.
    """
    known = [board for board in boards if board.device != without]
    left_out, medians, ninety = {}, [], []
    for board in known:
        prior = _fitted([other for other in known if other is not board])
        errors = [_errors(prior, board, table) for table in board.tables]
        joined = np.concatenate(errors)
        left_out[board.device] = float(f"{100 * np.abs(np.expm1(joined)).mean():.3g}")
        ninety.append(float(np.quantile(np.abs(joined), 0.9)))
        medians += [float(np.median(each)) for each in errors]
    distance = max(ninety)
    alike = min(float(np.mean(np.square(medians))) / (distance / 1.645) ** 2, 1.0)
    return structs.replace(
        _fitted(known),
        left_out=left_out,
        factor=float(f"{np.exp(distance):.4g}"),
        alike=float(f"{alike:.4g}"),
    )


def _errors(
    prior: PowerPrior, board: MeteredBoard, table: _Metered, *, pauses_ms: float = 0.0
) -> FloatArray:
    """Logarithms of predicted over measured power, of loops that pause so long at each kernel."""
    model = prior.on(board.hardware, board.peaks_gflops, board.dtype)
    awake = table.runtime_ms / (table.runtime_ms + pauses_ms)
    asleep = -prior.base * (1.0 - awake)
    found = model.predict_utilization(table.compute, table.traffic, more=asleep)
    return np.asarray(np.log(found / table.power_w))


def _fitted(boards: Sequence[MeteredBoard]) -> PowerPrior:
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    thin = []
    for board in boards:
        for table in board.tables:
            count = len(table.power_w)
            places = np.unique(np.linspace(0, count - 1, min(count, _MOST_ROWS)).astype(int))
            some = _Metered(
                table.compute[places],
                table.traffic[places],
                table.runtime_ms[places],
                table.power_w[places],
            )
            thin.append((board, some, (len(places) * len(board.tables)) ** -0.5))

    def residuals(values: FloatArray) -> FloatArray:
        base, tensor_pj, byte_pj = values.tolist()
        prior = PowerPrior(base, tensor_pj, byte_pj)
        parts = []
        for board, table, weight in thin:
            size = np.abs(_errors(prior, board, table, pauses_ms=_PAUSES_MS)) / _OUTLYING
            parts.append(_OUTLYING * weight * np.sqrt(2 * (np.sqrt(1 + size**2) - 1)))
        return np.concatenate(parts)

    start, most = (0.5, 1.0, 20.0), (20.0, 20.0, 200.0)
    found = least_squares(residuals, start, bounds=((0, 0, 0), most), x_scale=(1, 1, 30)).x
    base, tensor_pj, byte_pj = (float(f"{value:.4g}") for value in found.tolist())
    waits = [table.waiting for board in boards for table in board.tables]
    waiting = float(np.nanmedian(waits)) if not np.isnan(waits).all() else 0.0
    return PowerPrior(base, tensor_pj, byte_pj, min(float(f"{waiting:.3g}"), base))
