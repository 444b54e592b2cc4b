"""Every family gets candidates of every quantity, the simplest first, and they fit its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from msgspec import convert, to_builtins

from pytest_neuralpower.calibrate.fit.designs import (
    Design,
    cpu_regimes,
    power_makers,
    runtime_makers,
)
from pytest_neuralpower.calibrate.fit.rows import (
    conv_layer,
    linear_layer,
    matmul_layer,
    pool_layer,
    streaming_layer,
)
from pytest_neuralpower.estimators import Boosted, NeuralPowerPolynomial, Physical, Tree
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import Ceilings, roofline_ms
from pytest_neuralpower.estimators.terms import Regime

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0, "multiprocessors": 8, "limit_w": 250.0}
COUNT = 100
PAPER = ["neuralpower", "neuralpower-relative"]


def layer(kind: str, random: np.random.Generator) -> Layer:
    batch, channels, size, width = random.integers(2, 65, 4).tolist()
    if kind == "conv":
        return conv_layer(
            (batch, channels, size, size), cout=width, kernel=(3, 3), stride=(1, 1), padding=(1, 1)
        )
    if kind == "linear":
        return linear_layer(batch, channels * 8, width * 8)
    if kind == "matmul":
        return matmul_layer((batch, size, channels), (batch, channels, width))
    if kind == "pool":
        shape, half = (batch, channels, 2 * size, 2 * size), (batch, channels, size, size)
        return pool_layer(
            shape, half, op="max_pool2d", kernel=(2, 2), stride=(2, 2), padding=(0, 0)
        )
    shape = (batch, channels, size)
    return streaming_layer("activation", "relu", [shape], shape)


@pytest.mark.parametrize(
    ("kind", "quantity"),
    [
        *((kind, "runtime") for kind in ("conv", "linear", "matmul", "pool", "activation")),
        *(
            (kind, quantity)
            for kind in ("linear", "activation")
            for quantity in ("power", "energy")
        ),
    ],
)
def test_every_candidate_fits_its_family(kind: str, quantity: str) -> None:
    random = np.random.default_rng(0)
    layers = [layer(kind, random) for _ in range(COUNT)]
    assert {family(each) for each in layers} == {kind}
    values = columns(kind, layers)
    noise = random.uniform(0.95, 1.05, COUNT)
    time = (0.02 + values["flops"] / 0.7e9 + values["bytes_moved"] / 60e6) * noise
    watts = 40 + 120 * values["flops"] / (time * 1e9) + 50 * values["bytes_moved"] / (time * 1e8)
    target = {"runtime": time, "power": watts, "energy": time * watts}[quantity]
    values["prior_ms"] = roofline_ms(kind, values, Ceilings.of(HARDWARE))  # of a flat prior
    makers = {
        "runtime": lambda: runtime_makers(kind, Design(), HARDWARE),
        "power": lambda: power_makers(kind, HARDWARE),
        "energy": lambda: runtime_makers(kind, Design(), HARDWARE, quantity="energy"),
    }[quantity]()
    paper = PAPER if kind in ("conv", "linear", "pool") else []
    if quantity == "power":
        assert list(makers) == ["utilization", *paper, "boosted"]
    else:
        bounded = ["neuralpower-bounded"] if quantity == "runtime" else []
        assert list(makers) == [*bounded, "physical", *paper, "tree", "boosted"]
    for name, make in makers.items():
        estimator = make()
        assert estimator.name == name
        if type(estimator) is NeuralPowerPolynomial:
            continue  # its Lasso is slow, and test_contract fits it
        fitted = estimator.fit({**values, "runtime_ms": time}, target)
        off = np.abs(fitted.predict({**values, "runtime_ms": time}) / target - 1)
        assert np.median(off) < 0.25, name


def test_recipes_choose_regimes_and_terms() -> None:
    design = Design(
        regimes=(Regime("all", ("launch", "bytes_over[6]")),),
        tree_terms=("launch", "unaligned_in[8]"),
    )
    makers = runtime_makers("conv", design, HARDWARE)
    physical, tree = makers["physical"](), makers["tree"]()
    assert isinstance(physical, Physical)
    assert isinstance(tree, Tree)
    assert [each.terms for each in physical.regimes] == [("launch", "bytes_over[6]")]
    assert tree.terms == ("launch", "unaligned_in[8]")


@pytest.mark.parametrize(("quantity", "trees"), [("runtime", 250), ("energy", 125)])
def test_recipes_choose_the_number_of_trees_and_further_inputs(quantity, trees) -> None:
    design = Design(trees=250, depth=6, least_rows=8, inputs=("fill(m, 256)",))
    free = runtime_makers("linear", Design(), HARDWARE, quantity=quantity)["boosted"]()
    chosen = runtime_makers("linear", design, HARDWARE, quantity=quantity)["boosted"]()
    assert free.trees is None
    assert (chosen.trees, chosen.depth, chosen.least_rows) == (trees, 6, 8)
    assert chosen.inputs == (*free.inputs, "fill(m, 256)")


def test_a_processor_fills_vectors_and_a_gpu_tiles() -> None:
    processor = {name: HARDWARE[name] for name in ("peak_gflops", "bandwidth_gbs")}
    for hardware, term, fill in (
        (processor, "tile_flops[1x16]", "fill(n, 16)"),
        (HARDWARE, "tile_flops[128x32]", "wave_fill(128x64, 8)"),
    ):
        makers = runtime_makers("linear", Design(), hardware)
        physical, boosted = makers["physical"](), makers["boosted"]()
        assert isinstance(physical, Physical)
        assert isinstance(boosted, Boosted)
        assert term in physical.regimes[0].terms
        assert fill in boosted.inputs


class TestProcessors:
    HARDWARE: ClassVar = {
        "peak_gflops": 100.0, "bandwidth_gbs": 10.0, "threads": 1, "vector_floats": 8,
        "l2_mb": 1.2, "l3_mb": 30.0,
    }  # fmt: skip

    def test_regimes_are_as_wide_as_the_device_s_vectors_and_caches(self) -> None:
        (others,) = (each for each in cpu_regimes("conv", self.HARDWARE) if not each.when)
        assert "padded_flops[8x8]" in others.terms
        assert "bytes_over[1]" in others.terms
        assert "bytes_over[30]" in others.terms

    def test_several_threads_leave_pointwise_convolutions_to_the_library(self) -> None:
        one = {each.name for each in cpu_regimes("conv", self.HARDWARE)}
        many = {each.name for each in cpu_regimes("conv", {**self.HARDWARE, "threads": 4})}
        assert "pointwise" in one - many

    @pytest.mark.parametrize("family", ["conv", "linear", "matmul", "norm", "pool", "rnn"])
    def test_every_term_is_known_and_the_last_regime_holds_for_all(self, family: str) -> None:
        regimes = cpu_regimes(family, self.HARDWARE)
        assert regimes == convert(to_builtins(regimes), list[Regime])
        assert not regimes[-1].when

    def test_an_operation_with_few_rows_is_fitted_with_the_others(self) -> None:
        ops = ["relu"] * 30 + ["tanh"] * 30 + ["mish"] * 3
        layers = [
            streaming_layer("activation", op, [(1, 1000 * (place + 1))], (1, 1000 * (place + 1)))
            for place, op in enumerate(ops)
        ]
        values = columns("activation", layers)
        times = values["bytes_out"] * np.where(np.array(ops) == "tanh", 3e-6, 1e-6) + 0.02
        physical = runtime_makers("activation", Design(), self.HARDWARE)["physical"]()
        physical.fit(values, times)
        names = [each["name"] for each in physical.to_json()["regimes"]]
        assert "tanh" in names
        assert "mish" not in names
        error = np.abs(physical.predict(values) / times - 1)
        assert error[:60].max() < 0.02
