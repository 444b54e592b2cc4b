"""Rows of decoding teach a family of their own, judged on heads that no row of the fit had."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.card import card_text
from pytest_neuralpower.calibrate.fit.designs import Design
from pytest_neuralpower.calibrate.fit.fit import fit_rows
from pytest_neuralpower.calibrate.fit.readers import attention_layer
from pytest_neuralpower.calibrate.fit.recipe import Recipe
from pytest_neuralpower.calibrate.fit.rows import Row
from pytest_neuralpower.calibrate.fit.sweep import sweep
from pytest_neuralpower.platform.prediction import EXTRAPOLATED, INFERRED
from pytest_neuralpower.report.accuracy import accuracy_text

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.price import FittedPlatform

HARDWARE = {
    "peak_gflops": 900_000, "bandwidth_gbs": 4000, "multiprocessors": 100, "l2_mb": 40,
    "limit_w": 700,
}  # fmt: skip

#: Queries' heads, heads of keys and values, width.
HEADS = [(32, 8, 128), (32, 4, 128), (16, 16, 64), (16, 8, 64), (64, 8, 128), (8, 8, 128),
         (8, 2, 256), (40, 8, 128), (24, 4, 64), (16, 2, 256)]  # fmt: skip


def decode(
    batch: int,
    heads: tuple[int, int, int],
    *,
    keys: int = 4096,
    queries: int = 1,
    dtype: str = "bfloat16",
) -> Layer:
    shape = batch, heads[0], queries, heads[2]
    return attention_layer(shape, heads[1], keys=keys, dtype=dtype)


def runtime_ms(batch: int, heads: tuple[int, int, int], keys: int = 4096) -> float:
    """Of a device that reads keys and values at 3.2 TB/s, one wave of heads after the other."""
    _, shared, width = heads
    waves = np.ceil(batch * shared / 100)
    return float(0.006 + 0.0015 * waves + 4 * batch * shared * keys * width / 3.2e9)


def measured(dtype: str = "bfloat16", slower: float = 1.0) -> list[Row]:
    rows = []
    for line, heads in enumerate(HEADS):
        group = tuple(zip(("heads", "shared", "width"), map(str, heads), strict=True))
        for batch in (1, 4, 16, 64, 256):
            for keys in (128, 1024, 8192, 32768):
                time = slower * runtime_ms(batch, heads, keys)
                layer = decode(batch, heads, keys=keys, dtype=dtype)
                rows.append(Row(layer, time, line=line, group=group))
    return rows


DESIGN = Design(rescale=False, candidates=("physical", "boosted"), trees=50)
RECIPE = Recipe(
    "toy", "kernels alone", "Toy", hardware=HARDWARE, dtype="bfloat16",
    peaks_gflops={"bfloat16": 900_000, "float8_e4m3fn": 1_800_000},
    designs={"attention.decode": DESIGN}, folder=Path(),
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> FittedPlatform:
    return fit_rows(measured(), RECIPE).platform


def test_heads_that_were_held_out_are_predicted(fitted: FittedPlatform) -> None:
    found = fitted.accuracy["runtime"]["attention.decode"]
    assert (found["rows"], found["groups"]) == (200, len(HEADS))
    assert found["held_out"][found["chosen"]]["mape"] < 15
    assert fitted.accuracy["intervals"]["runtime"]["attention.decode"]["shapes_percent"] >= 85


def test_what_was_held_out_together_is_said(fitted: FittedPlatform) -> None:
    assert "of attention.decode all rows with the same heads and shared and width" in card_text(
        fitted
    )
    assert "200 rows of 10 heads x shared x width" in accuracy_text("toy", fitted.accuracy)


def test_a_head_shape_between_those_is_priced_without_a_flag(fitted: FittedPlatform) -> None:
    heads = (48, 8, 128)
    (priced,) = fitted.predict([decode(8, heads)]).layers
    assert priced.flags == ()
    assert priced.runtime_ms == pytest.approx(runtime_ms(8, heads), rel=0.25)


def test_several_queries_are_extrapolated_and_a_prompt_is_another_family(
    fitted: FittedPlatform,
) -> None:
    layers = [decode(8, (32, 8, 128), queries=queries) for queries in (4, 1024)]
    flags = [each.flags for each in fitted.predict(layers).layers]
    assert flags == [(EXTRAPOLATED,), (INFERRED,)]


def test_no_price_falls_when_the_batch_doubles_nor_beats_the_bandwidth(
    fitted: FittedPlatform,
) -> None:
    for heads in [*HEADS, (5, 1, 96), (64, 64, 512)]:
        layers = [decode(2**power, heads, keys=3000) for power in range(12)]
        times = [each.runtime_ms or 0.0 for each in fitted.predict(layers).layers]
        assert all(more > 0.95 * less for less, more in pairwise(times))
        for layer, time in zip(layers, times, strict=True):
            uncached = max(layer.cost.bytes_moved - 40e6, 0.0)
            assert time >= uncached / 4000e6


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_keys_in_8_bits_are_priced_by_rows_of_their_own(fitted: FittedPlatform, dtype: str) -> None:
    """A kernel that takes longer in 8 bits than in 16, as no ratio of peaks would say."""
    rows = [*measured(), *measured("float8_e4m3fn", slower=1.3)]
    both = fit_rows(rows, RECIPE).platform
    heads = (48, 8, 128)
    layers = [decode(8, heads), decode(8, heads, dtype=dtype)]
    plain, eight = both.predict(layers).layers
    assert plain.runtime_ms == fitted.predict(layers[:1]).runtime_ms
    assert eight.runtime_ms == pytest.approx(1.3 * runtime_ms(8, heads), rel=0.25)
    assert (plain.flags, eight.flags) == ((), ())
    assert both.predict(layers).notes == ()
    assert both.accuracy["runtime"]["attention.decode.float8"]["rows"] == 200
    assert "attention.decode.float8" in card_text(both)
    found = sweep(both, layers=180)
    assert (found.layers, found.impossible) == (360, 0)
    # Without such rows they are an extrapolation from those there are.
    (unmeasured,) = fitted.predict(layers[1:]).layers
    assert unmeasured.flags == (EXTRAPOLATED,)
