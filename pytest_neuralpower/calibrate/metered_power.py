"""Power of a calibrated device, from the layers and networks that ran alone under its meter.

A reading takes seconds, so there are tens of them and not thousands: too few for each kind of layer
to have an estimator of its own. One model learns from all of them how power follows the share of
the device's compute and of its bandwidth that is in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pytest_neuralpower.estimators import Shares
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.features import columns, family

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measured_rows import NetworkRow
    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.features import FloatArray
    from pytest_neuralpower.platform import Platform

__all__ = ["metered_power"]

#: Readings for three terms, at least; fewer come of a calibration of less than a minute.
_LEAST: Final = 6


class _Reading(NamedTuple):
    """Power of one layer or network, and the mean shares of compute and bandwidth it had."""

    name: str
    watts: float
    compute: float
    traffic: float


def metered_power(platform: Platform, networks: Sequence[NetworkRow]) -> Platform:
    """The platform with a power model of all kinds of layers; none is claimed of too few readings.

    Its accuracy tells each reading's error by a model that was fitted without it.
    """
    model = Shares(
        peak_gflops=float(platform.hardware["peak_gflops"]),
        bandwidth_gbs=float(platform.hardware["bandwidth_gbs"]),
        limit_w=platform.hardware.get("limit_w"),
    )
    readings = _readings(model, networks)
    if len(readings) < _LEAST:
        tiers = {quantity: tier for quantity, tier in platform.tiers.items() if quantity != "power"}
        return replace(platform, tiers=tiers)
    watts = np.array([each.watts for each in readings])
    shares = np.array([(each.compute, each.traffic) for each in readings])
    held_out = np.empty(len(readings))
    for index in range(len(readings)):
        rest = np.arange(len(readings)) != index
        model.fit_shares(shares[rest, 0], shares[rest, 1], watts[rest])
        held_out[index] = model.predict_shares(*shares[index : index + 1].T)[0]
    model.fit_shares(shares[:, 0], shares[:, 1], watts)
    fitted = model.predict_shares(shares[:, 0], shares[:, 1])
    accuracy = _accuracy(readings, watts, held_out, fitted)
    return replace(platform, power=model, accuracy={**platform.accuracy, "power": accuracy})


def _accuracy(
    readings: Sequence[_Reading], watts: FloatArray, held_out: FloatArray, fitted: FloatArray
) -> dict[str, Any]:
    mean = (watts.sum() - watts) / (len(watts) - 1)
    return {
        "free_parameters": 3,
        "effective_layers": 1.0,
        "leave_one_network_out": Score.of(held_out, watts).to_json(),
        "fitted": Score.of(fitted, watts).to_json(),
        "mean_of_the_others": Score.of(mean, watts).to_json(),
        "networks": {
            each.name: {
                "measured_w": round(each.watts, 2),
                "held_out_w": round(float(held), 2),
                "fitted_w": round(float(fit), 2),
            }
            for each, held, fit in zip(readings, held_out, fitted, strict=True)
        },
    }


def _readings(model: Shares, networks: Sequence[NetworkRow]) -> list[_Reading]:
    found = []
    for network in networks:
        for number, (row, _) in enumerate(network.layers):
            if row.power_w is not None and not row.flaw:
                shares = _shares(model, [(row, 1)])
                found.append(
                    _Reading(f"{network.network}.{number} {row.layer.op}", row.power_w, *shares)
                )
        if network.power_w is not None:
            found.append(
                _Reading(network.network, network.power_w, *_shares(model, network.layers))
            )
    return found


def _shares(model: Shares, layers: Sequence[tuple[Row, int]]) -> tuple[float, float]:
    """Mean share of compute and of bandwidth over the layers' measured time."""
    total = compute = traffic = 0.0
    for row, count in layers:
        values = columns(family(row.layer), [row.layer])
        first, second = model.shares({**values, "runtime_ms": np.array([row.runtime_ms])})
        time = row.runtime_ms * count
        total, compute, traffic = (
            total + time,
            compute + time * float(first[0]),
            traffic + time * float(second[0]),
        )
    return compute / total, traffic / total
