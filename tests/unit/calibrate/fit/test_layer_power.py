"""Power of a family is learnt as power or as energy, whichever errs less on held-out shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.designs import Design, runtime_makers
from pytest_neuralpower.calibrate.fit.power import (
    LayerPower,
    distance_of_unseen_kinds,
    fit_layer_power,
)
from pytest_neuralpower.calibrate.fit.recipe import Recipe
from pytest_neuralpower.calibrate.fit.rows import Row, linear_layer, matmul_layer
from pytest_neuralpower.calibrate.fit.uncertainty import FamilyFit
from pytest_neuralpower.estimators import Utilization
from pytest_neuralpower.estimators.features import Columns, FloatArray, columns
from pytest_neuralpower.estimators.selection import Selection, select
from pytest_neuralpower.platform.price import FamilyModel

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0, "multiprocessors": 8, "limit_w": 250.0}
DESIGN = Design(candidates=("physical",))


def measured(watts: str, *, noise: float) -> list[Row]:
    """Products whose time varies by ``noise``; power by utilization, or energy by work."""
    random = np.random.default_rng(0)
    rows = []
    for line in range(2, 122):
        layer = linear_layer(*(int(size) for size in random.integers(64, 1024, 3)))
        exact = 0.02 + layer.cost.flops / 0.7e9 + layer.cost.bytes_moved / 60e6
        runtime = exact * float(np.exp(random.normal(0, noise)))
        if watts == "utilization":
            power = 40 + 150 * layer.cost.flops / (runtime * 1e9)
        else:  # whatever it took, the joules are those of the operations and the bytes
            power = 100 * exact / runtime
        rows.append(Row(layer, runtime, power, line=line))
    return rows


def table(rows: list[Row]) -> tuple[Columns, FloatArray, Selection]:
    values = columns("linear", [row.layer for row in rows])
    runtime = np.array([row.runtime_ms for row in rows])
    makers = {"physical": runtime_makers("linear", DESIGN, HARDWARE)["physical"]}
    return values, runtime, select(makers, values, runtime, [row.shape_group for row in rows])


def learnt(rows: list[Row], design: Design = DESIGN) -> LayerPower | None:
    values, _, runtime = table(rows)
    return fit_layer_power("linear", rows, values, runtime, design=design, hardware=HARDWARE)


def test_power_is_learnt_as_power_where_that_errs_less() -> None:
    found = learnt(measured("utilization", noise=0.0))
    assert found is not None
    assert found.quantity == "power"
    assert isinstance(found.chosen()["power"], Utilization)


def test_energy_is_learnt_where_that_errs_less_and_is_what_power_times_runtime_gives() -> None:
    rows = measured("energy", noise=0.2)
    found = learnt(rows)
    assert found is not None
    assert found.quantity == "energy"
    values, _, runtime = table(rows)
    predicted = runtime.estimator.predict(values)
    model = FamilyModel({}, runtime.estimator, **found.chosen())
    watts = model.power_w(values, predicted, None)
    assert watts is not None
    measured_w = np.array([row.power_w for row in rows], dtype=float)
    assert watts.min() >= measured_w.min()
    assert watts.max() <= measured_w.max()
    inside = (watts > measured_w.min()) & (watts < measured_w.max())
    energy = found.chosen()["energy"].predict(values)
    assert inside.mean() > 0.9
    assert (watts * predicted)[inside] == pytest.approx(energy[inside])


def test_rows_without_power_teach_none() -> None:
    rows = measured("utilization", noise=0.0)
    assert learnt([*rows[:-1], replace(rows[-1], power_w=None)]) is None


def test_utilization_of_some_rows_holds_for_the_others_where_the_recipe_says_so() -> None:
    rows = [
        row if row.runtime_ms > 0.1 else replace(row, power_w=None)
        for row in measured("utilization", noise=0.0)
    ]
    found = learnt(rows, Design(candidates=("physical",), learn="utilization"))
    assert found is not None
    assert found.quantity == "power"
    values, time, runtime = table(rows)
    short = time <= 0.1
    assert 10 < short.sum() < 60
    watts = found.chosen()["power"].predict({**values, "runtime_ms": time})
    exact = 40 + 150 * values["flops"] / (time * 1e9)
    assert watts[short] == pytest.approx(exact[short], rel=0.02)
    # Errors are judged on the rows that have power alone.
    known = FamilyFit(rows, values, time, runtime, power=found.selection).metered()
    assert known.rows == [row for row in rows if row.power_w is not None]
    assert known.runtime.rows == len(known.rows) == (~short).sum()
    assert known.runtime.held_out.tolist() == runtime.held_out[~short].tolist()


def test_power_of_a_kind_without_rows_is_as_sure_as_kinds_left_out_were() -> None:
    recipe = Recipe("board", "alone", hardware={**HARDWARE, "idle_w": 20.0})
    rows = measured("utilization", noise=0.0)
    others = []  # of another kind, which draw twice the power
    for row in rows:
        (m, k), _ = row.layer.inputs[0]
        layer = matmul_layer((m, k), (k, row.layer.outputs[0].shape[1]))
        others.append(replace(row, layer=layer, power_w=2 * (row.power_w or 0.0)))
    alike = [replace(row, power_w=(row.power_w or 0.0) / 2) for row in others]
    apart = distance_of_unseen_kinds(recipe, rows + others)
    near = distance_of_unseen_kinds(recipe, rows + alike)
    assert apart is not None
    assert near is not None
    assert apart > np.log(1.7) > near
    assert distance_of_unseen_kinds(recipe, rows) is None  # no other kind to learn from
