"""Platforms of datasheets, judged on devices whose rows they never saw.

python experiments/hidden_datasheets.py [NAME ...]

Each NAME is a folder of `calibration/`. What its recipe says of the device (ceilings, mode) is
priced as all other devices run layers, as `neuralpower platforms new` does for a device that nobody
measured: no row of the device, of whatever table, is in the prior. Its own rows then judge: by kind
of layer, and by whole calls where the recipe has any (each 24th: tracing takes seconds a model).
Needs the public tables at ../shared/data; calls of timm's models need timm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from tabulate import tabulate

from pytest_neuralpower.calibrate.fit.calls import read_all_calls
from pytest_neuralpower.calibrate.fit.fit import platform_of, read_rows
from pytest_neuralpower.calibrate.fit.prior import priors_for
from pytest_neuralpower.calibrate.fit.readers import data_root
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.calibrate.fit.uncertainty import with_intervals
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import family

if TYPE_CHECKING:
    from pytest_neuralpower.platform.intervals import Interval
    from pytest_neuralpower.platform.price import FittedPlatform

REPOSITORY = Path(__file__).parents[1]
CALIBRATION = REPOSITORY / "calibration"
NAMES = ("p100", "v100", "t4", "a100", "gtx1080ti", "h200", "l40s", "rtx4090", "titanrtx")
EACH = 24

Judged = list[tuple[float, float, bool]]


def hidden(recipe: Recipe, data: Path) -> FittedPlatform:
    """The platform of the recipe's device by its datasheet and all other devices."""
    priors = priors_for(
        recipe.device, recipe.hardware, recipe.dtype, calibration=CALIBRATION, data_root=data
    )
    bare = replace(recipe, sources=(), calls=(), tiers={"runtime": "datasheet"}, networks="")
    return with_intervals(platform_of(bare, priors, {}), bare, {})


def line(name: str, what: str, judged: Judged) -> list[str]:
    """Errors, bias, and how many values the 90% intervals hold."""
    predicted, measured, held = (np.array(each) for each in zip(*judged, strict=True))
    ratio = predicted / measured
    return [
        name,
        what,
        f"{len(ratio):,}",
        f"{100 * np.median(np.abs(ratio - 1)):.0f}",
        f"{100 * np.abs(ratio - 1).mean():.0f}",
        f"{100 * (np.median(ratio) - 1):+.0f}",
        f"{100 * held.mean():.0f}",
    ]


def _held(interval: Interval | None, measured: float) -> bool:
    return interval is not None and interval.low <= measured <= interval.high


def judge(name: str, data: Path) -> Iterator[list[str]]:
    """A line for each kind of layer with rows, and one for the calls."""
    recipe = read_recipe(CALIBRATION / name)
    platform = hidden(recipe, data)
    rows, recipe = read_rows(recipe, data)
    by_family: dict[str, Judged] = {}
    layers = platform.predict([row.layer for row in rows]).layers if rows else ()
    for row, each in zip(rows, layers, strict=True):
        held = _held(each.runtime_interval_ms, row.runtime_ms)
        judged = (each.runtime_ms or np.nan, row.runtime_ms, held)
        by_family.setdefault(family(row.layer), []).append(judged)
    for kind, found in sorted(by_family.items()):
        yield line(name, kind, found)
    some = tuple(
        replace(source, options={**source.options, "thin": EACH}) for source in recipe.calls
    )
    calls, _ = read_all_calls(replace(recipe, calls=some), data, lambda _: None)
    whole: Judged = []
    for call in calls:
        found = platform.predict([layer for layer, count in call.layers for _ in range(count)])
        held = _held(found.runtime_interval_ms, call.runtime_ms)
        whole.append((found.runtime_ms or np.nan, call.runtime_ms, held))
    if whole:
        yield line(name, "whole calls", whole)


def main(names: Sequence[str]) -> int:
    try:
        data = data_root(REPOSITORY)
    except ProfileError as error:
        print(f"skipped: {error}")
        return 0
    lines = [each for name in names or NAMES for each in judge(name, data)]
    headers = ("hidden", "kind", "rows", "median %", "mean %", "bias %", "90% interval holds %")
    print(tabulate(lines, headers, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
