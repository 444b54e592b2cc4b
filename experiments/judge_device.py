"""Judge a platform on its own device, with real networks that its calibration never saw.

    python experiments/judge_device.py calibration/my-gpu/my-gpu.json --minutes 3

Every network of ``real_networks.py`` is predicted and measured at batch 1 and 4, as many as the
time allows, in a fixed random order. Prints each, and the errors of runtime, power and energy.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from real_networks import BATCHES, NETWORKS
from tabulate import tabulate

from pytest_neuralpower.calibrate.measure.device import Device, open_device
from pytest_neuralpower.calibrate.measure.network import compare, measure_call
from pytest_neuralpower.calibrate.measure.verify import device_of, measured_here, mode_of
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.platform.catalog import load_platform, predict_call

if TYPE_CHECKING:
    from pytest_neuralpower.platform.price import FittedPlatform

QUANTITIES = ("runtime", "power", "energy")


def records(platform: FittedPlatform, minutes: float) -> Iterator[dict[str, Any]]:
    """Measured beside predicted, network by network, until the time is up."""
    device = open_device(device_of(platform), platform.dtype, mode=mode_of(platform), meter="auto")
    try:
        yield from _records(platform, device, minutes)
    finally:
        device.close()


def _records(platform: FittedPlatform, device: Device, minutes: float) -> Iterator[dict[str, Any]]:
    import torch

    print("\n".join(device.meter.notes))
    dtype = getattr(torch, platform.dtype)
    calls = list(itertools.product(NETWORKS, BATCHES))
    random.Random(0).shuffle(calls)
    end = time.monotonic() + 60 * minutes
    for network, batch in calls:
        if time.monotonic() > end:
            break
        model = network.make().to(dtype)
        inputs = tuple(
            each.to(dtype) if each.is_floating_point() else each for each in network.inputs(batch)
        )
        try:
            prediction = predict_call(model, inputs, {}, platform=platform)
            measured = measure_call(model, inputs, {}, device, seconds=1.0)
        except NeuralPowerError as error:
            print(f"left out {network.name}, batch {batch}: {error}")
            continue
        record = compare(measured, prediction, device).to_json()
        yield {**record, "model": f"{network.name}, batch {batch}"}


def order_right(pairs: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """Pairs of calls more than 10% apart: how many are predicted in the right order, and all."""
    right = total = 0
    for (first, one), (second, other) in itertools.combinations(pairs, 2):
        if max(first, second) > 1.1 * min(first, second):
            total += 1
            right += (first > second) == (one > other)
    return right, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("platform", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    given = parser.parse_args()
    platform = measured_here(load_platform(given.platform))
    found = list(records(platform, given.minutes))
    rows = [
        [each["model"], *(_cell(each.get(quantity)) for quantity in QUANTITIES)] for each in found
    ]
    print(tabulate(rows, ["network", "runtime, ms", "power, W", "energy, mJ"], "github"))
    for quantity in QUANTITIES:
        known = [each[quantity] for each in found if (each.get(quantity) or {}).get("predicted")]
        if not known:
            continue
        predicted = np.array([each["predicted"] for each in known])
        measured = np.array([each["measured"] for each in known])
        score = Score.of(predicted, measured)
        inside = [each["inside_interval"] for each in known if each["inside_interval"] is not None]
        right, total = order_right(list(zip(measured, predicted, strict=True)))
        print(
            f"{quantity}: {len(known)} networks, MAPE {score.mape:.1f}%, bias {score.bias:+.1f}%, "
            f"{score.within_10:.0f}% within 10%, {sum(inside)} of {len(inside)} inside their "
            f"interval, order right for {right} of {total} pairs"
        )


def _cell(found: dict[str, Any] | None) -> str:
    if not found:
        return "-"
    if found["predicted"] is None:
        return f"{found['measured']:.4g}"
    return f"{found['measured']:.4g} / {found['predicted']:.4g} ({found['error_percent']:+.1f}%)"


if __name__ == "__main__":
    main()
