"""Bounded corrections: what rows teach, kept within what they showed and what a device can do."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.estimators import Bounded, Physical, Prior, Sparse, Tree
from pytest_neuralpower.estimators.correction import MOST_ROOFLINES, MOST_TERMS
from pytest_neuralpower.estimators.features import Columns, FloatArray, columns
from pytest_neuralpower.estimators.physics import Ceilings, features, least_ms, roofline_ms
from pytest_neuralpower.estimators.terms import Regime

GPU = Ceilings(peak_gflops=10_000, bandwidth_gbs=500, cache_mb=4, units=40, launch_ms=0.004)


def products(*shapes: tuple[int, int, int]) -> Columns:
    return columns("linear", [linear_layer(m, k, n) for m, k, n in shapes])


def drawn(count: int = 300) -> Columns:
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(np.log(16), np.log(4096), (count, 3))).astype(int)
    return products(*[(int(m), int(k), int(n)) for m, k, n in sizes])


def prior(factor: float = 1.0, *, between: float = 0.2, within: float = 0.1) -> Prior:
    constant = Sparse((), GPU, "roofline_ms", intercept_=math.log(factor), bounds_=(-9, 9))
    return Prior(constant, between, within, ("a", "b"))


def bounded(inner: object = None, *, factor: float = 1.0) -> Bounded:
    return Bounded("linear", GPU, prior(factor), inner)  # type: ignore[arg-type]


def sparse() -> Sparse:
    return Sparse(features("linear"), GPU)


def roofline(values: Columns) -> FloatArray:
    return roofline_ms("linear", values, GPU)


class TestSparse:
    def test_learns_a_factor_that_depends_on_sizes(self) -> None:
        values = {**drawn(), "prior_ms": roofline(drawn())}
        truth = np.exp(0.5 + 0.05 * np.log2(np.clip(values["k"], 1, 4096)))
        fitted = sparse().fit(values, values["prior_ms"] * truth)
        assert fitted.predict(values) / values["prior_ms"] == pytest.approx(truth, rel=0.02)
        assert 0 < len(fitted.coefficients_) <= MOST_TERMS

    def test_a_few_wild_rows_do_not_bend_it(self) -> None:
        values = {**drawn(), "prior_ms": roofline(drawn())}
        target = values["prior_ms"] * 2.0
        target[::20] *= 50.0
        error = sparse().fit(values, target).predict(values) / values["prior_ms"]
        assert np.median(error) == pytest.approx(2.0, rel=0.02)

    def test_beyond_the_rows_its_inputs_stay_at_their_edge(self) -> None:
        values = {**drawn(), "prior_ms": roofline(drawn())}
        fitted = sparse().fit(values, values["prior_ms"] * np.log2(values["k"]))
        far = products((512, 4096, 512), (512, 4096 * 64, 512))
        factor = fitted.log_factor(far)
        assert (np.abs(factor) <= np.max(np.abs(fitted.bounds_))).all()

    def test_what_is_stored_says_the_same(self) -> None:
        values = {**drawn(), "prior_ms": roofline(drawn())}
        fitted = sparse().fit(values, values["prior_ms"] * np.log2(values["k"]))
        again = msgspec.convert(fitted.to_json(), Sparse)
        assert (again.predict(values) == fitted.predict(values)).all()

    @pytest.mark.parametrize("name", ["nonsense", "waves*nonsense"])
    def test_refuses_an_input_that_there_is_not(self, name: str) -> None:
        with pytest.raises(ValueError, match="nonsense"):
            Sparse((), GPU, coefficients_={name: 1.0}, ranges_={"waves": (0, 1)})


class TestBounded:
    def test_without_rows_it_is_the_prior_on_the_roofline(self) -> None:
        values = drawn(20)
        assert bounded(factor=3.0).predict(values) == pytest.approx(3 * roofline(values))

    def test_rows_correct_the_prior(self) -> None:
        values = drawn()
        fitted = bounded(sparse()).fit(values, 2.5 * roofline(values))
        assert fitted.predict(values) == pytest.approx(2.5 * roofline(values), rel=0.02)

    def test_far_from_its_rows_the_device_keeps_its_middle_factor(self) -> None:
        values = drawn()
        size = 0.1 * np.log2(values["k"])
        target = roofline(values) * np.exp(size)
        fitted = bounded(sparse()).fit(values, target)
        far = products((30, 200_000, 200_000))
        middle = math.exp(float(np.median(size)))
        assert fitted.predict(far) / roofline(far) == pytest.approx([middle], rel=0.02)

    def test_an_estimator_that_goes_astray_is_kept_within_what_rows_showed(self) -> None:
        values = drawn()
        wrong = Physical([Regime("all", ("launch", "bytes_weight"))], 10_000, 500)
        fitted = bounded(wrong).fit(values, 2 * roofline(values))
        assert (fitted.predict(values) <= 2 * 1.3 * roofline(values)).all()

    def test_no_price_beats_the_ceilings(self) -> None:
        values = drawn()
        fitted = bounded(sparse()).fit(values, 0.01 * roofline(values))
        assert (fitted.predict(values) >= least_ms("linear", values, GPU)).all()

    def test_no_price_is_far_above_the_roofline(self) -> None:
        values = drawn()
        fitted = bounded(sparse()).fit(values, 100 * roofline(values))
        assert fitted.predict(values) == pytest.approx(MOST_ROOFLINES * roofline(values))

    def test_a_larger_batch_is_never_much_cheaper(self) -> None:
        sizes = [2**power for power in range(4, 13)]
        values = products(*[(m, 512, 512) for m in sizes for _ in range(4)])
        jagged = np.where(np.log2(values["m"]) % 2 == 0, 3.0, 1.0)
        tree = Tree(("m",), ("launch", "flops"))  # follows every jag
        fitted = bounded(tree).fit(values, jagged * roofline(values))
        found = fitted.predict(products(*[(m, 512, 512) for m in sizes]))
        assert (found[1:] >= 0.95 * found[:-1]).all()

    def test_what_was_measured_is_believed_before_smaller_batches_that_were_not(self) -> None:
        """Narrow layers take a fifth of what others do: of a batch that no row had the middle
        factor says more than a row of twice the batch took."""
        values = drawn()
        target = np.where(values["n"] <= 64, 0.3, 1.5) * roofline(values)
        fitted = bounded(Tree(("n",), ("launch", "flops", "bytes_io"))).fit(values, target)
        narrow = products((16, 64, 32), (32, 64, 32), (64, 64, 32))
        assert fitted.predict(narrow) == pytest.approx(0.3 * roofline(narrow), rel=0.25)
        single = products(*[(2**power, 64, 32) for power in range(5)])
        found = fitted.predict(single)
        assert (found[1:] >= 0.95 * found[:-1]).all()

    def test_a_price_does_not_depend_on_what_is_priced_with_it(self) -> None:
        values = drawn()
        fitted = bounded(sparse()).fit(values, np.log2(values["k"]) * roofline(values))
        alone = [
            float(fitted.predict({name: each[[row]] for name, each in values.items()})[0])
            for row in range(20)
        ]
        assert fitted.predict(values)[:20].tolist() == alone

    def test_it_is_called_what_it_wraps(self) -> None:
        assert bounded().label == "prior"
        assert bounded(sparse()).label == "neuralpower-bounded"


def test_the_distance_of_a_prior_holds_both_deviations() -> None:
    known = prior(between=0.3, within=0.4)
    assert known.distance == pytest.approx(1.645 * 0.5, rel=1e-3)
    assert known.correlation == pytest.approx(0.36)
