"""What a platform predicts, and what it flags."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from msgspec.structs import replace

from pytest_neuralpower import load_platform
from pytest_neuralpower.calibrate.fit.rows import conv_layer, linear_layer
from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.layers import Layer, TensorSpec, Trace
from pytest_neuralpower.platform.prediction import (
    EXTRAPOLATED,
    INFERRED,
    UNCOVERED,
    LayerPrediction,
    Prediction,
)
from pytest_neuralpower.platform.price import FamilyModel, FittedPlatform


def conv(*, batch: int = 2, cin: int = 32, kernel: int = 3) -> Layer:
    pad = kernel // 2
    return conv_layer(
        (batch, cin, 14, 14), cout=64, kernel=(kernel, kernel), stride=(1, 1), padding=(pad, pad)
    )


def streaming(kind: str, shape: tuple[int, ...], dtype: str = "float32") -> Layer:
    """A layer that reads and writes one tensor of ``shape``."""
    tensor = TensorSpec(shape, dtype)
    return Layer(kind, kind, "", (tensor,), (), (tensor,), dtype)


class TestRuntime:
    def test_comes_from_the_family_s_estimator(self, platform: FittedPlatform) -> None:
        layer = conv()
        found = platform.predict([layer]).layers[0]
        assert found.runtime_ms == pytest.approx(1.0 + 2.0 * layer.cost.flops / 1e9)
        assert (found.estimator, found.flags) == ("physical", ())

    def test_of_nothing_is_that_of_a_launch(self, platform: FittedPlatform) -> None:
        tiny, empty = streaming("norm", (1,)), streaming("norm", (0, 8))
        found = [each.runtime_ms for each in platform.predict([tiny, empty]).layers]
        assert found == pytest.approx([0.01, 0.01], rel=1e-4)

    def test_of_nothing_is_as_close_to_it_as_the_rows_were(self, platform: FittedPlatform) -> None:
        """What was learnt says 0 ms: the correction of the prior, 0.01 ms, ends at its bound."""
        inner = platform.families["activation"].runtime
        learnt = replace(platform.inferred["activation"], inner=inner, bounds_=(-0.5, 0.5))
        families = {"activation": FamilyModel({}, learnt)}
        found = replace(platform, families=families).predict([streaming("activation", (0, 8))])
        assert found.runtime_ms == pytest.approx(0.01 * math.exp(-0.5))
        assert found.layers[0].estimator == "physical"

    def test_of_the_mode_s_overheads_is_added(self, platform: FittedPlatform) -> None:
        plain = platform.families["conv"]
        families = {**platform.families, "conv": replace(plain, overheads={"layout_pass": 0.5})}
        layer = conv()
        extra = replace(platform, families=families).predict([layer]).runtime_ms
        turned = 2 * layer.cost.bytes_moved / 1e6
        assert extra - platform.predict([layer]).runtime_ms == pytest.approx(0.5 * turned)

    def test_of_a_layer_does_not_depend_on_its_neighbours(self, platform: FittedPlatform) -> None:
        layers = [conv(), streaming("activation", (8, 8)), conv(batch=3), streaming("norm", (9,))]
        together = platform.predict(layers).layers
        alone = [platform.predict([layer]).layers[0] for layer in layers]
        assert list(together) == alone

    def test_is_the_same_bits_each_time(self) -> None:
        loaded = load_platform("titanx")
        layers = [conv(batch=batch) for batch in range(1, 50)]
        assert loaded.predict(layers) == load_platform("titanx").predict(layers)


class TestFlags:
    def test_a_kind_without_rows_is_priced_by_its_traffic_as_elsewhere(
        self, platform: FittedPlatform
    ) -> None:
        layer = streaming("elementwise", (1000, 1000))
        found = platform.predict([layer]).layers[0]
        assert found.runtime_ms == pytest.approx(2 * (0.005 + 8e6 / 100e6))
        assert (found.estimator, found.flags) == ("prior", (INFERRED,))

    def test_or_by_its_operations_where_they_take_longer(self, platform: FittedPlatform) -> None:
        found = platform.predict([linear_layer(1000, 1000, 1000)]).layers[0]
        assert found.runtime_ms == pytest.approx(2 * (0.005 + 2e9 / 1000e6))
        assert found.flags == (INFERRED,)

    def test_an_uncovered_operation_is_priced_and_flagged_as_such(
        self, platform: FittedPlatform
    ) -> None:
        found = platform.predict([streaming("uncovered", (1000, 1000))]).layers[0]
        assert found.runtime_ms == pytest.approx(2 * (0.005 + 8e6 / 100e6))
        assert found.flags == (UNCOVERED,)

    @pytest.mark.parametrize(("cin", "kernel"), [(8, 1), (67, 3)])
    def test_a_size_outside_the_calibrated_range_is_extrapolated(
        self, platform: FittedPlatform, cin: int, kernel: int
    ) -> None:
        inside, outside = conv(cin=66), conv(cin=cin, kernel=kernel)  # k is 9 to 600
        found = platform.predict([inside, outside]).layers
        assert [each.flags for each in found] == [(), (EXTRAPOLATED,)]

    def test_a_depthwise_convolution_never_borrows_the_dense_efficiency(
        self, platform: FittedPlatform
    ) -> None:
        layer = conv_layer(
            (1, 32, 14, 14), cout=32, kernel=(3, 3), stride=(1, 1), padding=(1, 1), groups=32
        )
        found = platform.predict([layer]).layers[0]
        assert (found.estimator, found.flags) == ("prior", (INFERRED,))

    def test_nor_does_a_transposed_one(self, platform: FittedPlatform) -> None:
        plain = conv()
        params = tuple((k, True if k == "transposed" else v) for k, v in plain.params)
        layer = Layer(
            "conv", "conv_transpose2d", "", plain.outputs,
            (TensorSpec((64, 32, 3, 3), "float32"),), plain.inputs, "float32", params,
        )  # fmt: skip
        found = platform.predict([layer]).layers[0]
        assert (found.estimator, found.flags) == ("prior", (INFERRED,))
        assert found.runtime_ms == pytest.approx(2 * (0.005 + layer.cost.flops / 1e9))

    def test_another_floating_dtype_is_extrapolated_with_one_note(
        self, platform: FittedPlatform
    ) -> None:
        half = streaming("activation", (64, 64), "float16")
        found = platform.predict([half, half, streaming("activation", (64, 64))])
        assert [each.flags for each in found.layers] == [(EXTRAPOLATED,), (EXTRAPOLATED,), ()]
        assert found.notes == (
            "2 of 3 layers in float16: priced as float32, its peak is not known",
        )

    def test_a_kind_without_rows_in_another_dtype_is_both(self, platform: FittedPlatform) -> None:
        (found,) = platform.predict([streaming("norm", (64, 64), "float16")]).layers
        assert set(found.flags) == {INFERRED, EXTRAPOLATED}

    def test_integers_are_no_dtype_mismatch(self, platform: FittedPlatform) -> None:
        found = platform.predict([streaming("activation", (64, 64), "int64")])
        assert (found.notes, found.layers[0].flags) == ((), ())

    @pytest.mark.parametrize("dtype", ["int8", "int32"])
    def test_unless_they_are_multiplied(self, platform: FittedPlatform, dtype: str) -> None:
        quick = replace(platform, peaks_gflops={dtype: 4000.0})
        product = linear_layer(1000, 1000, 1000, dtype=dtype)
        found = quick.predict([product, streaming("activation", (64, 64), dtype)])
        assert [EXTRAPOLATED in each.flags for each in found.layers] == [True, False]
        assert found.notes == (f"1 of 2 layers in {dtype}: priced at 4 times the peak of float32",)


class TestAnotherDtype:
    """Measured in float32, where 1,000 GFLOP/s are the peak; float16 may do four times as many."""

    @pytest.fixture
    def quick(self, platform: FittedPlatform) -> FittedPlatform:
        return replace(platform, peaks_gflops={"float16": 4000.0})

    def test_takes_as_much_less_as_the_ceilings_allow(self, quick: FittedPlatform) -> None:
        """Of operations a quarter, of bytes a half, and of a launch all."""
        half = linear_layer(1000, 1000, 1000, dtype="float16")
        streamed = streaming("elementwise", (1000, 1000), "float16")
        computes, streams = quick.predict([half, streamed]).layers
        assert computes.runtime_ms == pytest.approx(2 * (0.005 + 2e9 / 4000e6))
        assert streams.runtime_ms == pytest.approx(2 * (0.005 + 4e6 / 100e6))

    def test_takes_its_own_time_where_its_peak_is_not_known(self, platform: FittedPlatform) -> None:
        product = linear_layer(1000, 1000, 1000)
        half = linear_layer(1000, 1000, 1000, dtype="float16")
        found = platform.predict([half])
        assert found.runtime_ms == platform.predict([product]).runtime_ms

    def test_may_take_what_the_peak_allows_or_miss_half_of_the_gain(
        self, quick: FittedPlatform
    ) -> None:
        plain = linear_layer(4000, 4000, 4000)
        half = linear_layer(4000, 4000, 4000, dtype="float16")
        measured = quick.predict([plain]).runtime_ms
        low, high, _ = quick.predict([half]).layers[0].runtime_interval_ms
        assert low <= half.cost.flops / 4000e6 * 1.01
        assert high >= 0.99 * measured / 2  # of four times as fast, twice


class TestPower:
    def test_energy_is_power_times_time(self, platform: FittedPlatform) -> None:
        prediction = platform.predict([conv(), streaming("norm", (1000, 100))])
        for each in prediction.layers:
            assert each.power_w is not None
            assert each.energy_mj == each.power_w * each.runtime_ms
        assert prediction.energy_mj == sum(each.energy_mj or 0 for each in prediction.layers)

    def test_grows_with_the_shares(self, platform: FittedPlatform) -> None:
        # At 0.1 ms/MB it moves 10 of 100 GB/s, and computes 1e6 of the 0.8e9 operations possible.
        found = platform.predict([streaming("activation", (1000, 1000))]).layers[0]
        assert found.power_w == pytest.approx(50 + 60 * 0.1 + 100 * 1e6 / 0.8e9)

    def test_is_none_on_a_platform_without_a_power_model(self, platform: FittedPlatform) -> None:
        found = replace(platform, power=None).predict([conv()])
        assert (found.power_w, found.energy_mj, found.layers[0].energy_mj) == (None, None, None)

    def test_grows_with_the_traffic_that_the_mode_adds(self, platform: FittedPlatform) -> None:
        # A layout pass reads and writes input, weight and output once more: thrice the traffic.
        model = replace(platform.families["conv"], overheads={"layout_pass": 0.5})
        layer = conv()
        found = replace(platform, families={"conv": model}).predict([layer]).layers[0]
        bandwidth = 3 * layer.cost.bytes_moved / 1e6 / (100 * found.runtime_ms)
        compute = layer.cost.flops / 1e6 / (1000 * found.runtime_ms)
        assert found.power_w == pytest.approx(50 + 60 * bandwidth + 100 * compute)

    @pytest.mark.parametrize(
        ("limit_w", "high"), [(1000.0, 50 * math.exp(0.3)), (60.0, 60.0), (40.0, 50.0)]
    )
    def test_may_be_no_more_than_the_board_s_limit_unless_it_is_predicted_to(
        self, platform: FittedPlatform, limit_w: float, high: float
    ) -> None:
        watts = {"base": 50.0, "compute": 0.0, "bandwidth": 0.0}
        platform.power.load_ = watts
        board = replace(platform, hardware={**platform.hardware, "limit_w": limit_w})
        layers = [streaming("norm", (9, 9))]
        found = board.predict(layers)
        assert found.power_interval_w[:2] == pytest.approx((50 * math.exp(-0.3), high))
        assert found.runtime_interval_ms == platform.predict(layers).runtime_interval_ms

    def test_that_is_not_predicted_has_no_note_of_where_it_comes_from(
        self, platform: FittedPlatform
    ) -> None:
        guessed = replace(platform, tiers={"runtime": "measured", "power": "datasheet"})
        (note,) = guessed.predict([conv()]).notes
        assert note == "power and energy: from the datasheet, not measured here"
        assert replace(guessed, power=None).predict([conv()]).notes == ()

    def test_of_a_family_comes_first(self, platform: FittedPlatform) -> None:
        model = platform.families["conv"]
        assert platform.power is not None
        own = replace(platform.power, load_={"base": 7, "compute": 0, "bandwidth": 0})
        families = {"conv": replace(model, power=own)}
        found = replace(platform, families=families).predict([conv(), streaming("norm", (9, 9))])
        assert found.layers[0].power_w == 7.0
        assert (found.layers[1].power_w or 0) > 50.0

    def test_learnt_as_energy_is_energy_over_time_within_what_was_measured(
        self, platform: FittedPlatform
    ) -> None:
        layer = conv()
        runtime = platform.predict([layer]).layers[0].runtime_ms or 0
        energy = replace(platform.families["conv"].runtime)
        energy.regimes = [replace(energy.regimes[0], terms=("launch",), rates={"launch": 8.0})]
        for range_w, power in (((1.0, 99.0), 8 / runtime), ((1.0, 3.0), 3.0), ((9.0, 99.0), 9.0)):
            model = replace(platform.families["conv"], energy=energy, power_range_w=range_w)
            found = replace(platform, families={"conv": model}).predict([layer]).layers[0]
            assert found.power_w == pytest.approx(power)
            assert found.energy_mj == found.power_w * found.runtime_ms


class TestCost:
    """What layers are ranked and weighted by: energy, or runtime where energy is not known."""

    LONG = LayerPrediction(conv(), 8.0, 1.25, 10.0, "by hand", (EXTRAPOLATED,))
    HOT = LayerPrediction(conv(), 1.0, 40.0, 40.0, "by hand", (INFERRED, EXTRAPOLATED))
    PLAIN = LayerPrediction(conv(), 1.0, 30.0, 30.0, "by hand")

    def test_is_energy(self) -> None:
        found = Prediction((self.LONG, self.HOT, self.PLAIN), "toy", "0" * 64)
        assert found.top(2) == (self.HOT, self.PLAIN)
        assert [found.share(each) for each in (EXTRAPOLATED, INFERRED, UNCOVERED)] == [
            5 / 8,
            0.5,
            0,
        ]
        assert found.share(UNCOVERED, INFERRED, EXTRAPOLATED) == 5 / 8

    def test_is_runtime_where_energy_is_not_known(self) -> None:
        layers = tuple(
            each._replace(power_w=None, energy_mj=None)
            for each in (self.HOT, self.LONG, self.PLAIN)
        )
        found = Prediction(layers, "toy", "0" * 64)
        assert found.top(1) == (layers[1],)
        assert [found.share(each) for each in (EXTRAPOLATED, INFERRED)] == [0.9, 0.1]


class TestImpossibleValues:
    def test_a_power_below_0_is_refused_by_name(self, platform: FittedPlatform) -> None:
        platform.power.load_["base"] = -500.0
        with pytest.raises(PlatformError) as found:
            platform.predict([streaming("norm", (9, 9)), conv()])
        text = str(found.value)
        assert "platform toy predicts a power of -" in text
        assert "refit the platform" in text
        assert "\n" not in text

    def test_a_runtime_that_is_no_number_is_refused(self, platform: FittedPlatform) -> None:
        platform.families["conv"].overheads["flops"] = float("nan")
        with pytest.raises(PlatformError, match="predicts a runtime of nan for conv2d"):
            platform.predict([streaming("norm", (9, 9)), conv()])


class TestCall:
    def test_copies_what_the_trace_says_of_the_call(self, platform: FittedPlatform) -> None:
        trace = Trace((conv(),), route="aten", notes=("slow",), batch=8, model="Net")
        found = platform.predict(trace)
        assert (found.batch, found.model, found.route) == (8, "Net", "aten")
        assert (found.notes, found.platform, found.platform_sha256) == (("slow",), "toy", "0" * 64)

    @pytest.mark.parametrize(
        ("nothing", "named"), [([], "the model"), (Trace((), model="Identity"), "Identity")]
    )
    def test_of_no_layer_is_an_error(
        self, platform: FittedPlatform, nothing: Trace | list[Layer], named: str
    ) -> None:
        with pytest.raises(TraceError, match=f"^nothing to predict: {named} runs no operation"):
            platform.predict(nothing)


def test_predicting_imports_neither_torch_nor_the_fitting_libraries() -> None:
    program = (
        "import sys\n"
        "from pytest_neuralpower.platform.catalog import load_platform\n"
        "from pytest_neuralpower.layers import Layer, TensorSpec\n"
        "t = TensorSpec((8, 8), 'float32')\n"
        "load_platform('titanx').predict([Layer('norm', 'n', '', (t,), (), (t,), 'float32')])\n"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'pandas', 'yaml') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
