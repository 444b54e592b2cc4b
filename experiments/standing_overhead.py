"""What NeuSight's convolutions hold beside the layer, in every row: ``start_ms`` of the recipes.

Layers under 0.4 ms are compared with what other tables say of them on *other* boards: latency =
``start + k * price``, least mean relative error. Recipes take off the lower end of what it prints
for several choices of tables: the rest is left to the layer. It needs the public tables.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pytest_neuralpower.calibrate.fit.prior import fit_priors, read_boards
from pytest_neuralpower.calibrate.fit.readers import data_root, read_source
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.estimators.features import columns
from pytest_neuralpower.estimators.physics import Ceilings, roofline_ms

REPOSITORY = Path(__file__).parents[1]

#: Longer layers say little of an overhead of tens of microseconds.
LONGEST_MS = 0.4


def _other(family: str, stack: str) -> bool:
    return family != "conv" or stack != "neusight"


def main() -> None:
    """Print the overhead of every board that NeuSight timed convolutions on."""
    data = data_root(REPOSITORY)
    boards = [
        replace(
            board, tables=tuple(each for each in board.tables if _other(each.family, each.stack))
        )
        for board in read_boards(REPOSITORY / "calibration", data)
    ]
    for name in ("p100", "v100", "t4", "a100", "p4"):
        recipe = read_recipe(REPOSITORY / "calibration" / name)
        source = next(each for each in recipe.sources if each.reader == "neusight_conv")
        rows = [row for row in read_source(recipe, source, data) if not row.flaw]
        known = float(source.options.get("start_ms", 0.0))
        latency = np.array([row.runtime_ms for row in rows]) + known
        ceilings = Ceilings.of(recipe.hardware)
        values = columns("conv", [row.layer for row in rows])
        values["roofline_ms"] = roofline_ms("conv", values, ceilings)
        factor = fit_priors(boards, "gpu", without=recipe.device)["conv"].on(ceilings).factor
        price = factor.predict(values)
        short = price < LONGEST_MS
        error, start, multiple = min(
            (float(np.abs((start + k * price[short]) / latency[short] - 1).mean()), start, k)
            for start in np.arange(0, 0.1, 0.001)
            for k in np.arange(0.6, 1.4, 0.01)
        )
        print(
            f"{name}: {1000 * start:.0f} us beside {multiple:.2f} of the price, off by "
            f"{error:.1%} on {short.sum()} layers; the recipe takes off {1000 * known:.0f} us"
        )


if __name__ == "__main__":
    main()
