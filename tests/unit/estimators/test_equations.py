"""Fitted estimators as text: every coefficient in base units, under the conditions it holds for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from flat_priors import flat_prior
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.estimators import (
    Boosted,
    Bounded,
    Estimator,
    NeuralPowerPolynomial,
    NeuralPowerRelative,
    Physical,
    Sparse,
    Tree,
    Utilization,
)
from pytest_neuralpower.estimators.features import columns
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.estimators.terms import Condition, Regime
from pytest_neuralpower.platform.catalog import list_platforms, load_fitted, load_platform
from pytest_neuralpower.platform.price import FamilyModel, FittedPlatform
from pytest_neuralpower.report.explain import explain_text

HARDWARE = {"peak_gflops": 1000.0, "bandwidth_gbs": 100.0}
SIZES = [(m, k, n) for m in (1, 7, 64, 200) for k in (16, 100, 512) for n in (8, 64, 300)] * 3
VALUES = columns("linear", [linear_layer(*each) for each in SIZES])
TIME = np.where(VALUES["m"] <= 7, 1.0, 3.0) * (0.25 + 2e-9 * VALUES["flops"])
REGIMES = [
    Regime("few", ("launch", "flops"), (Condition("m", "<=", 7),)),
    Regime("many", ("launch", "flops")),
]


def explained(**estimators: Any) -> list[str]:
    platform = load_fitted("titanx")
    model = FamilyModel({"m": (1.0, 200.0)}, **estimators)
    return explain_text(
        replace(platform, families={"linear": model}, power=None, accuracy={}), "linear"
    ).splitlines()


def fitted(estimator: Estimator, target: Any = TIME) -> Estimator:
    return estimator.fit({**VALUES, "runtime_ms": TIME}, target)


def test_regimes_are_equations_under_their_conditions() -> None:
    physical = Physical(REGIMES, **HARDWARE, rescale=False)
    lines = explained(runtime=fitted(physical))
    assert lines[:12] == [
        "linear on titanx: NVIDIA GeForce GTX Titan X (Maxwell, GM200), float32",
        "",
        "runtime_ms, by physical",
        "  if m <= 7 (few):",
        "    runtime_ms = 0.25",
        "               + 2e-09 * flops",
        lines[6],
        "  else (many):",
        "    runtime_ms = 0.75",
        "               + 6e-09 * flops",
        lines[10],
        "  the roofline: flops at 1000 GFLOP/s, then bytes_moved at 100 GB/s",
    ]
    assert lines[6].startswith("    kept between ")
    assert lines[-3:] == [
        "where",
        "  flops  operations, 2 per multiply-accumulate, in FLOPs",
        "  m      rows of the matrix product (of a convolution: batch x output positions)",
    ]


def test_a_scale_is_multiplied_in() -> None:
    physical = Physical([Regime("all", ("launch", "flops"))], **HARDWARE)
    fitted(physical)
    scaled = physical.regimes[0]
    equation = next(line for line in explained(runtime=physical) if "* flops" in line)
    assert f"{scaled.rates['flops'] * scaled.scale * 1e-9:.4g} * flops" in equation


def test_a_tree_is_its_splits_indented() -> None:
    tree = Tree(("m",), ("launch", "flops"), depth=2, least_rows=9)
    lines = explained(runtime=fitted(tree))
    start = lines.index("  if m <= 20:")
    assert lines[start + 1 : start + 6] == [
        "    runtime_ms = 0.25",
        "               + 2e-09 * flops   (54 rows)",
        "  else:",
        "    runtime_ms = 0.75",
        "               + 6e-09 * flops   (54 rows)",
    ]


def test_boosted_is_its_base_and_the_size_of_the_residual() -> None:
    base = Physical([Regime("all", ("launch", "flops"))], **HARDWARE)
    boosted = Boosted(base, ("m", "n"), ("m", "n"), trees=20, least_rows=8)
    text = "\n".join(explained(runtime=fitted(boosted)))
    assert "* flops" in text
    assert f"a sum of 20 trees of depth 4, which moves it by {boosted.spread_:.0%}" in text
    assert "the residual asks most about m" in text
    assert "fades beyond m 1..200, n 8..300: halved one doubling away" in text
    none = Boosted(base, ("m",), ("m",), trees=0, least_rows=8)
    assert "chose to add no tree" in "\n".join(explained(runtime=fitted(none)))


def test_power_is_explained_likewise() -> None:
    watts = 60 + 30 * VALUES["flops"] / (TIME * 1e9) + 20 * VALUES["bytes_moved"] / (TIME * 1e8)
    lines = explained(runtime=fitted(Physical(REGIMES, **HARDWARE)), power=fitted(
        Utilization(**HARDWARE, limit_w=250.0), watts))  # fmt: skip
    start = lines.index("power_w, by utilization")
    assert lines[start + 1 : start + 5] == [
        "  power_w = 60",
        "          + 30 * compute_utilization",
        "          + 20 * bandwidth_utilization",
        "  at most 250, the board's limit",
    ]


def test_power_that_saturates_and_power_from_energy_are_equations_too() -> None:
    load = {"base": 0.1, "compute": 0.75, "bandwidth": 0.5}
    saturating = Utilization(**HARDWARE, idle_w=20.0, limit_w=250.0, load_=load)
    energy = Physical([Regime("all", ("flops",))], **HARDWARE)
    watts = 60 + VALUES["m"] / 10
    runtime = fitted(Physical(REGIMES, **HARDWARE))
    lines = explained(runtime=runtime, power=saturating)
    start = lines.index("power_w, by utilization")
    assert lines[start + 1 : start + 5] == [
        "  power_w = 20 + 230 * (1 - exp(-load))",
        "  load = 0.1",
        "       + 0.75 * compute_utilization",
        "       + 0.5 * bandwidth_utilization",
    ]
    fitted(energy, watts * TIME)
    lines = explained(runtime=runtime, energy=energy, power_range_w=(60.1, 80.0))
    start = lines.index("energy_mj, by physical")
    assert lines[start + 1].startswith("  energy_mj = ")
    assert lines[start + 1].endswith(" * flops")
    assert "  power_w = energy_mj / runtime_ms, from 60.1 to 80" in lines[start:]


@pytest.mark.parametrize("kind", [NeuralPowerPolynomial, NeuralPowerRelative])
def test_the_paper_s_polynomial_is_written_with_its_sizes(
    kind: type[NeuralPowerPolynomial],
) -> None:
    estimator = kind("linear")
    estimator.intercept_ = 0.5
    estimator.coefficients_ = {"m.0*n.1": 2.0, "special1:m*n*one*one*k": 3e-9}
    lines = explained(runtime=estimator)
    start = lines.index(f"runtime_ms, by {kind.name}")
    assert lines[start + 1 : start + 4] == [
        "  runtime_ms = 0.5",
        "             + 2 * m * n",
        "             + 3e-09 * m * n * one * one * k",
    ]
    assert ("  at least 0.105" in lines) == (kind is NeuralPowerPolynomial)


def test_an_estimator_without_an_equation_shows_what_it_stores() -> None:
    class Plain(Estimator):
        name = "plain"

        def _fit(self, columns: Any, target: Any) -> None: ...
        def predict(self, columns: Any) -> Any: ...
        def to_json(self) -> dict[str, Any]:
            return {"estimator": "plain", "watts": 7}

    lines = explained(runtime=Plain())
    assert '    "watts": 7' in lines


def test_what_rows_taught_is_bounded_by_what_other_devices_show() -> None:
    inner = Physical([Regime("all", ("launch", "flops"))], **HARDWARE, rescale=False)
    prior = flat_prior(HARDWARE, log_factor=float(np.log(2)))
    found = Bounded("linear", Ceilings.of(HARDWARE), prior, inner)
    lines = explained(runtime=fitted(found))
    assert lines[2] == "runtime_ms, by physical"
    low, high, middle = np.exp([*found.bounds_, found.center_])
    text = " ".join("\n".join(lines).split())
    assert (
        f"kept between {low:.3g} and {high:.3g} times the prior, and fading to {middle:.3g} times "
        "it outside the calibrated ranges the prior: as on 1 other device prior_ms = 2 * "
        "roofline_ms the roofline: 8 us + the larger of flops at 1000 GFLOP/s and traffic at 100 "
        "GB/s never below its operations at the peak or its bytes at the full bandwidth"
    ) in text


def test_a_sparse_polynomial_is_a_factor_of_named_logarithms() -> None:
    factor = Sparse(
        ("waves", "depth"),
        Ceilings.of(HARDWARE),
        intercept_=0.5,
        coefficients_={"waves": 0.25, "waves*depth": -0.125},
        ranges_={"waves": (0.0, 4.0), "depth": (0.0, 9.0)},
        bounds_=(-1.0, 1.0),
    )
    found = Bounded("linear", Ceilings.of(HARDWARE), flat_prior(HARDWARE), factor)
    lines = explained(runtime=found)
    assert lines[2:7] == [
        "runtime_ms, by neuralpower-bounded",
        "  runtime_ms = prior_ms * exp(factor), between 0.368 and 2.72 times",
        "  factor = 0.5",
        "         + 0.25 * waves",
        "         + -0.125 * waves * depth",
    ]
    assert lines[-3:] == [
        "where, in a factor,",
        "  waves  log2 of tiles over multiprocessors",
        "  depth  log2 of the length of the reduction",
    ]


@pytest.mark.parametrize(("name", "kind"), [("titanx", "rnn"), ("v100", "conv.transposed")])
def test_a_kind_without_rows_is_explained_as_it_is_priced(name: str, kind: str) -> None:
    platform = load_fitted(name)
    found = platform.inferred[kind]
    text = " ".join(explain_text(platform, kind).split())
    assert (
        f"{kind} was not measured on {name}: priced as it runs on {found.prior.witnesses}, "
        f"flagged I; 90% of such layers are within a factor of {np.exp(found.prior.distance):.2f}"
    ) in text
    borrowed = {"rnn": "activation", "conv.transposed": "conv"}[kind]
    assert found.prior.witnesses.endswith(f"({borrowed}, as no device was measured)")
    assert "runtime_ms, by prior the prior: as on " in text
    ceilings = found.ceilings
    launch = {"rnn": "4 us a step", "conv.transposed": "4 us"}[kind]
    assert (
        f"the roofline: {launch} + the larger of flops at {ceilings.peak_gflops:g} GFLOP/s and "
        f"traffic at {ceilings.bandwidth_gbs:g} GB/s"
    ) in text
    assert "power_w, by utilization (" in text


@pytest.mark.parametrize(
    ("multiprocessors", "says"),
    [
        (1, "8 us + 110 operations an element of a window and 1000 a result, at 1000 GFLOP/s, +"),
        (80, "4 us + the larger of flops at 1000 GFLOP/s and traffic at 100 GB/s, or 0.7 of all"),
    ],
)
def test_the_roofline_of_pools_is_told_as_it_is_computed(multiprocessors: int, says: str) -> None:
    hardware = {**HARDWARE, "multiprocessors": multiprocessors}
    found = Bounded("pool", Ceilings.of(hardware), flat_prior(hardware))
    assert f"the roofline: {says}" in " ".join("\n".join(explained(runtime=found)).split())


@pytest.mark.parametrize("name", ["conv2d", "Conv", "cnv"])
def test_an_unknown_kind_gets_a_hint(name: str) -> None:
    with pytest.raises(PlatformError) as error:
        explain_text(load_fitted("v100"), name)
    assert f"unknown kind of layer {name!r} (did you mean 'conv'?)" in str(error.value)
    assert "\n" not in str(error.value)


def test_power_says_how_it_is_known() -> None:
    platform = load_fitted("v100")
    text = " ".join(explain_text(platform, "conv").split())
    error = platform.accuracy["power"]["mape"]
    says = f"(transferred from 4 other devices, off by {error:.0f}% in the mean where each was left"
    assert says in text


def test_energy_is_bounded_by_watts() -> None:
    text = explain_text(load_fitted("cpu-raptorlake"), "linear")
    assert re.search(r"energy_mj = (?s:.*) W times the roofline's time", text)


@pytest.mark.parametrize("name", list_platforms())
def test_lines_stay_within_100_columns(name: str) -> None:
    platform = load_platform(name)
    if isinstance(platform, FittedPlatform):
        for family in platform.families:
            assert max(map(len, explain_text(platform, family).splitlines())) <= 100


@pytest.mark.parametrize("name", ["titanx", "titanx-tf"])
def test_every_shipped_family_is_explained_with_its_held_out_error(name: str) -> None:
    platform: FittedPlatform = load_fitted(name)
    for family in platform.families:
        text = explain_text(platform, family)
        assert "% on held-out shapes" in text
        assert "runtime_ms = " in text
        assert "power_w = " in text
