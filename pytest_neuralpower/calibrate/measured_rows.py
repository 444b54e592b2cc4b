"""Rows of a calibration's trials: passes and devices merged to one row a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.rows import Row

__all__ = ["Measurement", "NetworkRow", "layer_rows", "network_rows"]

#: Pass of the trials that close a calibration: they tell its repeatability and are not fitted.
CLOSING: Final = 0
#: Name of the network that is measured again and again; it would outweigh the others in a fit.
_SENTINEL: Final = "sentinel"

#: Device, network and place in it.
_Place: TypeAlias = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of a profile that was measured by trials.

    ``network`` and ``seed`` make the network again; ``index`` is the layer's place in it, -1 of the
    whole, whose operation is the network's template; ``calls`` is the number of equal layers that
    the row is the mean of.
    """

    row: Row
    trial: str
    what: str
    network: str
    seed: int
    index: int
    calls: int = 1
    pass_: int = 1
    wall_ms: float | None = None
    device_uuid: str = ""

    @property
    def place(self) -> _Place:
        return (self.device_uuid, self.network, self.index)


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One measured network: its own time beside that of its layers.

    Attributes
    ----------
    network
        Its name in the plan.
    runtime_ms, power_w
        Of one call.
    layers
        Every measured layer, and how many equal ones the network has.
    """

    network: str
    runtime_ms: float
    power_w: float | None
    layers: tuple[tuple[Row, int], ...]


def layer_rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Layers as they ran in place, each once, with the power they drew alone where it is known."""
    return [row for each, row in _merged(measurements) if each.index >= 0]


def network_rows(measurements: Iterable[Measurement]) -> list[NetworkRow]:
    """Whole networks with their layers."""
    wholes: list[tuple[Measurement, Row]] = []
    layers: dict[tuple[str, str], list[tuple[Row, int]]] = {}
    for each, row in _merged(measurements):
        if each.index < 0:
            wholes.append((each, row))
        else:
            layers.setdefault(each.place[:2], []).append((row, each.calls))
    return [
        NetworkRow(each.network, row.runtime_ms, row.power_w, tuple(layers[each.place[:2]]))
        for each, row in wholes
        if each.place[:2] in layers
    ]


def _merged(measurements: Iterable[Measurement]) -> list[tuple[Measurement, Row]]:
    """One row a place, in the order of the profile.

    A trial that was run again counts as it was the last time. Of several passes the least time
    counts, for whatever else the machine does only adds to it; of powers, the mean.
    """
    last: dict[tuple[str, _Place], Measurement] = {}
    for each in measurements:
        if each.network != _SENTINEL and each.pass_ != CLOSING:
            last[each.trial, each.place] = each
    in_place: dict[_Place, list[Measurement]] = {}
    watts: dict[_Place, list[float]] = {}
    for each in last.values():
        if each.what == "network":
            in_place.setdefault(each.place, []).append(each)
        if each.row.power_w is not None and not each.row.flaw:
            watts.setdefault(each.place, []).append(each.row.power_w)
    return [(group[0], _merge(group, watts)) for group in in_place.values()]


def _merge(group: Sequence[Measurement], watts: Mapping[_Place, Sequence[float]]) -> Row:
    sound = [each.row for each in group if not each.row.flaw]
    if not sound:
        flaw, _ = Counter(each.row.flaw for each in group).most_common(1)[0]
        return replace(group[0].row, flaw=flaw)
    power = watts.get(group[0].place)
    return replace(
        sound[0],
        runtime_ms=min(row.runtime_ms for row in sound),
        power_w=fmean(power) if power else None,
    )
