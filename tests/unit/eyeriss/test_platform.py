"""The array as a platform: what it predicts, and the file that describes it."""

from __future__ import annotations

import json

import pytest

from pytest_neuralpower import load_platform
from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.eyeriss import (
    ACCELERGY_40NM,
    EYERISS_65NM,
    Bits,
    ConvShape,
    Zeros,
    layer_energy,
)
from pytest_neuralpower.layers import KINDS, Layer, TensorSpec, Trace
from pytest_neuralpower.report.explain import explain_text

FORMAT = "pytest-neuralpower eyeriss"


def conv(path="conv") -> Layer:
    def spec(*shape):
        return (TensorSpec(shape, "float32"),)

    return Layer(
        "conv", "conv2d", path, spec(2, 8, 13, 13), spec(12, 8, 3, 3), spec(2, 12, 13, 13),
        "float32", (("groups", 1), ("padding", (1, 1)), ("stride", (1, 1))),
    )  # fmt: skip


SHAPE = ConvShape(13, 13, 8, 12, (3, 3), padding=(1, 1, 1, 1))


def written(tmp_path, **content):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"format": FORMAT, **content}), encoding="utf-8")
    return path


class TestPrediction:
    def test_is_energy_by_data_type_without_runtime(self):
        prediction = load_platform("eyeriss").predict(Trace((conv(),), batch=2, model="Net"))
        (layer,) = prediction.layers
        energy = layer_energy(SHAPE, batch=2)
        assert prediction.energy_mj == energy.millijoules
        assert prediction.runtime_ms is prediction.power_w is layer.runtime_ms is None
        assert sum(layer.energy_parts_mj.values()) == pytest.approx(layer.energy_mj)
        assert layer.energy_parts_mj["weight"] == pytest.approx(energy.weight * 2.2e-9)
        assert prediction.energy_parts_mj == layer.energy_parts_mj

    def test_says_what_its_energy_is(self):
        prediction = load_platform("eyeriss").predict([conv()])
        assert "2.2 pJ a MAC" in prediction.energy_basis
        assert "idle included" not in prediction.energy_basis

    def test_takes_zeros_by_path(self):
        platform = load_platform("eyeriss")
        zeros = Zeros(weight=400)
        one, other = platform.predict([conv("a"), conv("b")], zeros={"a": zeros}).layers
        assert one.energy_mj == layer_energy(SHAPE, batch=2, zeros=zeros).millijoules
        assert one.energy_mj < other.energy_mj

    def test_of_nothing_is_refused(self):
        with pytest.raises(TraceError, match="nothing to predict"):
            load_platform("eyeriss").predict([])


class TestCostTables:
    def test_each_has_a_platform_and_other_numbers(self):
        ours, other = load_platform("eyeriss"), load_platform("eyeriss-accelergy")
        assert (ours.costs, other.costs) == (EYERISS_65NM, ACCELERGY_40NM)
        assert ours.sha256 != other.sha256
        assert ours.predict([conv()]).energy_mj > other.predict([conv()]).energy_mj

    def test_are_named_where_platforms_are_listed(self):
        summary = load_platform("eyeriss-accelergy").summary()
        assert "accelergy-40nm" in summary.device
        assert summary.tiers == {"power": "analytic"}
        assert any("Accelergy" in source for source in summary.sources)


class TestFile:
    def test_may_leave_out_all_but_its_format(self, tmp_path):
        platform = load_platform(written(tmp_path))
        assert platform.name == "mine"
        assert platform.predict([conv()]).energy_mj == (
            load_platform("eyeriss").predict([conv()]).energy_mj
        )

    def test_gives_bits_and_a_cost_table_of_one_s_own(self, tmp_path):
        costs = {
            "name": "ours", "source": "our SRAM compiler", "pj_per_mac": 0.5, "register_file": 1,
            "array": 2, "buffer": {"input_map": 6, "weight": 3, "output_map": 6}, "dram": 100.0,
        }  # fmt: skip
        bits = {"input_map": 8, "weight": 4, "output_map": 16}
        platform = load_platform(written(tmp_path, name="ours", costs=costs, bits=bits))
        assert (platform.name, platform.bits, platform.dtype) == ("mine", Bits(8, 4, 16), "int4")
        found = platform.predict([conv()])
        expected = layer_energy(SHAPE, batch=2, bits=Bits(8, 4, 16), costs=platform.costs)
        assert found.energy_mj == expected.millijoules
        assert "0.5 pJ a MAC" in found.energy_basis

    def test_round_trips_through_plain_data(self, tmp_path):
        platform = load_platform("eyeriss-accelergy")
        path = written(tmp_path, **platform.to_json())
        again = load_platform(path.rename(tmp_path / "eyeriss-accelergy.json"))
        assert again == platform
        assert again.sha256 == platform.sha256

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"cost": "x"}, "unknown field 'cost'; allowed: format, name, hardware, costs, bits"),
            ({"costs": "45nm"}, "unknown costs '45nm'; known: eyeriss-65nm, accelergy-40nm"),
            ({"costs": {"name": "a"}}, "costs need the field 'array'"),
            ({"costs": 3}, "costs must be an object, not 3"),
            ({"bits": {"weight": 0}}, "bits weight must be a whole number from 1, not 0"),
            ({"bits": {"weights": 8}}, "unknown bits 'weights'"),
            ({"hardware": {"rows": 12.0}}, "hardware rows must be a whole number from 1"),
            ({"hardware": {"clock_hz": -1}}, "hardware clock_hz must be a number above 0, not -1"),
            ({"hardware": {"column_sums": 1}}, "hardware column_sums must be true or false"),
            ({"name": 3}, "name must be a string, not 3"),
            ({"name": "../x"}, "name '../x' must be a file's name"),
            ({"bits": {"weight": float("nan")}}, "NaN is not a finite number"),
        ],
    )
    def test_a_mistake_is_one_line_that_names_it(self, tmp_path, content, message):
        with pytest.raises(PlatformError) as caught:
            load_platform(written(tmp_path, **content))
        assert message in str(caught.value)
        assert "mine.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [0, -2, "2", True, None])
    def test_a_cost_is_a_positive_number(self, tmp_path, value):
        content = load_platform("eyeriss").to_json()
        content["costs"]["dram"]["weight"] = value
        with pytest.raises(PlatformError, match="costs dram weight must be a number above 0"):
            load_platform(written(tmp_path, **content))


class TestExplanation:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_kind_shows_the_costs(self, kind):
        text = explain_text(load_platform("eyeriss"), kind)
        assert ["dram", "200", "200", "200"] in [line.split() for line in text.splitlines()]
        assert "runtime is not modelled" in text
        assert max(map(len, text.splitlines())) <= 80

    def test_of_a_convolution_gives_the_equation(self):
        text = explain_text(load_platform("eyeriss"), "conv")
        assert "energy = computation + input_map + output_map + weight" in text

    def test_of_an_unknown_kind_names_those_there_are(self):
        with pytest.raises(PlatformError, match="unknown kind of layer 'convolution'; known: conv"):
            explain_text(load_platform("eyeriss"), "convolution")
