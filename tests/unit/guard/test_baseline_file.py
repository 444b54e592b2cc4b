"""A baseline file is YAML, is read back as it was, and a broken one is refused with its line."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import astuple

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.guard.baseline import (
    Baseline,
    baseline_name,
    baseline_of,
    baseline_text,
    parse_baseline,
)
from pytest_neuralpower.layer_codec import PricedLayer
from pytest_neuralpower.layers import ITEMSIZE, KINDS, Layer, TensorSpec


@pytest.fixture(scope="module")
def baseline(predicted):
    return baseline_of(predicted([32, 48]), test="tests/test_a.py::test_b[é]", torch="2.13.0")


def test_what_is_written_is_read_back(baseline):
    found = parse_baseline(baseline_text(baseline), "a.yaml")
    assert [each.layer for each in found.layers] == [each.layer for each in baseline.layers]
    for stored, summed in zip(astuple(found.totals), astuple(baseline.totals), strict=True):
        assert stored == pytest.approx(summed, rel=1e-5)
    assert (found.test, found.batch, found.model) == (baseline.test, 4, "Sequential")
    assert baseline_text(found) == baseline_text(baseline)


def test_every_layer_is_one_line(baseline):
    text = baseline_text(baseline)
    assert sum(line.startswith("- {") for line in text.splitlines()) == len(baseline.layers)


def test_it_is_yaml_that_any_tool_reads_alike(baseline):
    text = baseline_text(baseline)
    laid_out_anew = yaml.safe_dump(yaml.safe_load(text), sort_keys=True)
    assert "- {" not in laid_out_anew
    assert parse_baseline(laid_out_anew, "a.yaml") == parse_baseline(text, "a.yaml")


def test_a_layer_rewritten_in_yaml_s_own_words_is_read_alike(baseline):
    text = baseline_text(baseline)
    assert '- {"path": ' in text
    rewritten = text.replace('- {"path": ', "- {path: ", 1)
    assert parse_baseline(rewritten, "a.yaml") == parse_baseline(text, "a.yaml")


def test_a_truncated_file_is_refused_with_its_last_line(baseline):
    text = baseline_text(baseline)
    half = text[: text.rindex("- {") + 30]
    with pytest.raises(BaselineError, match=rf"a.yaml:{half.count(chr(10)) + 1}: not YAML"):
        parse_baseline(half, "a.yaml")


shapes = st.lists(st.integers(0, 6000), max_size=5).map(tuple)
tensors = st.lists(
    st.builds(TensorSpec, shapes, st.sampled_from(sorted(ITEMSIZE))), max_size=3
).map(tuple)
values = st.one_of(
    st.integers(),
    st.booleans(),
    st.text(max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(), max_size=3).map(tuple),
)
names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=12)
params = st.dictionaries(names, values, max_size=3).map(lambda found: tuple(sorted(found.items())))
costs = st.floats(1e-9, 1e12).map(lambda value: float(f"{value:.6g}"))
layers = st.builds(
    Layer, st.sampled_from(KINDS), names, names, tensors, tensors, tensors,
    st.sampled_from(sorted(ITEMSIZE)), params,
)  # fmt: skip


@given(
    st.lists(
        st.builds(PricedLayer, layers, costs, st.none() | costs, costs), min_size=1, max_size=3
    )
)
def test_any_layer_survives(found):
    baseline = Baseline("t.py::é", 'a "model"', 0, "p", "00", "2", layers=tuple(found))
    text = baseline_text(baseline)
    assert parse_baseline(text, "a") == baseline
    again = yaml.safe_load(text)["layers"]
    assert [each["path"] for each in again] == [each.layer.path for each in found]
    assert [each["runtime_ms"] for each in again] == [each.runtime_ms for each in found]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("4x64x28x28", "4x64y28", r"a.yaml:12: '4x64y28' is not a shape such as"),
        ('"kind": "conv"', '"kind": "cnov"', r"a.yaml:12: unknown kind of layer 'cnov'; allowed"),
        ('"out": ["4', '"out": "4', r"a.yaml: not YAML|a.yaml:\d+: not YAML"),
        ("batch: 4", "batch: four", r"a.yaml: batch must be a whole number, not 'four'"),
        ("batch: 4\n", "", r"a.yaml: field 'batch' is missing"),
        ("version: 1", "version: 9", r"version 9, this release reads up to 1: upgrade"),
        ("format: pytest", "format: a pytest", r"a.yaml: not a baseline"),
        ("batch: 4", "batch: 4\nnotes: x", r"unknown key 'notes'; allowed: format, version"),
        ('totals: {"energy_mj": ', 'totals: {"energy_mj": 1', r"energy_mj of its totals"),
        ("totals:", "total:", r"unknown key 'total'"),
        ('"Sequential"', "2001-13-45", r"a.yaml:5: not YAML \(month must be in 1..12\)"),
        ("batch: 4", f"batch: {'9' * 5000}", r"a.yaml:6: not YAML \(a number of 5000"),
        ('- {"path"', f'- {{"x": {"[" * 3000}, "path"', r"a.yaml:12: not YAML \(.*nest"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_place(baseline, before, after, message):
    text = baseline_text(baseline)
    assert before in text
    with pytest.raises(BaselineError, match=message) as found:
        parse_baseline(text.replace(before, after, 1), "a.yaml")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("layers", ["text", "'[]'", "{a: 1}", "3"])
def test_layers_that_are_no_list_are_refused(baseline, layers):
    head = baseline_text(baseline).partition("\nlayers:\n")[0]
    with pytest.raises(BaselineError, match="it has no layers, a list of them"):
        parse_baseline(f"{head}\nlayers: {layers}\n", "a.yaml")


def test_a_layer_that_cannot_be_priced_says_what_to_do(baseline):
    from pytest_neuralpower import load_platform

    item = baseline.layers[0]
    layers = (item._replace(layer=structs.replace(item.layer, weights=())),)
    broken = structs.replace(baseline, layers=layers)
    with pytest.raises(BaselineError, match=r"a layer cannot be priced .*: restore the file"):
        broken.repredict(load_platform("titanx"))


class TestNames:
    @pytest.mark.parametrize(
        ("test", "name"),
        [
            ("test_a.py::test_b", "test_a.test_b"),
            ("tests/unit/test_a.py::TestC::test_b[18]", "tests.unit.test_a.TestC.test_b-18"),
            ("budgets/nets.budget.yaml::vgg16", "budgets.nets.vgg16"),
        ],
    )
    def test_they_read_like_the_test(self, test, name):
        assert baseline_name(test) == name

    def test_a_second_prediction_is_numbered(self):
        assert baseline_name("a.py::b", 2) == "a.b.2"

    @given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
    def test_they_are_file_names_and_differ(self, one, other):
        names = [baseline_name(f"a.py::test[{each}]") for each in (one, other)]
        for name in names:
            assert not set(name) & set('/\\:*?"<>|\0\n')
            assert not name.startswith(".")
            assert len(name) <= 140
        assert (names[0] == names[1]) == (one == other)
