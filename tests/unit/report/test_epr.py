"""Energy-precision ratio: the ranking, the Pareto front, and the file of models."""

from __future__ import annotations

import math

import pytest

from pytest_neuralpower import load_platform
from pytest_neuralpower.errors import BudgetError, MissingExtraError, ReportError
from pytest_neuralpower.report.charts import energy_error_figure, write_page
from pytest_neuralpower.report.epr import (
    Candidate,
    energy_precision_ratio,
    pareto_front,
    rank,
    read_candidates,
)
from pytest_neuralpower.report.terminal import epr_text

SMALL, MIDDLE, WASTEFUL, LARGE = (
    Candidate("small", 0.30, 10.0),
    Candidate("middle", 0.25, 20.0),
    Candidate("wasteful", 0.26, 40.0),
    Candidate("large", 0.20, 80.0),
)
ALL = (LARGE, WASTEFUL, MIDDLE, SMALL)


def test_the_ratio_is_error_to_the_alpha_times_energy():
    assert energy_precision_ratio(0.5, 8.0, alpha=3) == 1.0
    assert energy_precision_ratio(0.5, 8.0, alpha=0) == 8.0


def test_alpha_moves_the_winner_from_cheap_to_exact():
    assert rank(ALL, alpha=0)[0].candidate is SMALL
    assert rank(ALL, alpha=20)[0].candidate is LARGE


def test_the_front_has_only_models_that_no_other_beats_in_both():
    ranked = rank(ALL)
    assert pareto_front(ranked) == (SMALL, MIDDLE, LARGE)
    assert [item.candidate.name for item in ranked if not item.efficient] == ["wasteful"]


@pytest.mark.parametrize(
    "worse", [Candidate("costlier", 0.30, 12.0), Candidate("less exact", 0.35, 10.0)]
)
def test_one_that_is_equal_in_one_and_worse_in_the_other_is_off_the_front(worse):
    assert pareto_front(rank([worse, SMALL])) == (SMALL,)


def test_the_table_says_what_its_star_is():
    text = epr_text(rank(ALL), platform="titanx", alpha=1)
    star = "* Pareto-optimal: no other model is better in both error and energy"
    assert text.splitlines()[-2:] == ["predicted on titanx", star]


def test_twins_are_both_on_the_front():
    twin = Candidate("twin", SMALL.error, SMALL.energy_mj)
    assert len(pareto_front(rank([SMALL, twin]))) == 2


@pytest.mark.parametrize(
    ("error", "energy", "alpha"),
    [(0, 1, 1), (1.2, 1, 1), (math.nan, 1, 1), (0.1, 0, 1), (0.1, math.inf, 1), (0.1, 1, -1)],
)
def test_values_out_of_range_are_refused(error, energy, alpha):
    with pytest.raises(BudgetError, match="must be"):
        energy_precision_ratio(error, energy, alpha=alpha)


MODELS = """
- {name: narrow, model: "torch.nn:Linear", arguments: {in_features: 512, out_features: 512},
   inputs: ["32,512"], error: 0.2}
- {name: wide, model: "torch.nn:Linear", arguments: {in_features: 512, out_features: 8192},
   inputs: ["32,512"], error: 0.1}
"""


def test_models_are_read_predicted_and_divided_by_their_batch(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text(MODELS)
    platform = load_platform("titanx")
    narrow, wide = read_candidates(path, platform)
    assert (narrow.name, narrow.error) == ("narrow", 0.2)
    assert 0 < narrow.energy_mj < wide.energy_mj
    import torch

    call = platform.predict  # the whole call of 32 samples costs 32 times one
    from pytest_neuralpower.tracing import trace

    whole = call(trace(torch.nn.Linear(512, 512), torch.empty(32, 512))).energy_mj
    assert narrow.energy_mj == pytest.approx(whole / 32)


def test_inputs_may_be_lists_of_sizes(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text(MODELS)
    as_texts = read_candidates(path, load_platform("titanx"))
    for same in ("[[32, 512]]", "[{shape: [32, 512], dtype: float32}]"):
        path.write_text(MODELS.replace('["32,512"]', same))
        assert read_candidates(path, load_platform("titanx")) == as_texts


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(BudgetError, match="there is no such file"):
        read_candidates(tmp_path / "models.yaml", load_platform("titanx"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: 3", "write a list of entries with name, model, inputs, error"),
        ("- [", "models.yaml:1: not YAML"),
        ("- {1.5: a, x: b, name: c}", "entry 1: unknown field 1.5"),
        ("- {name: 2001-13-45}", "models.yaml:1: not YAML (month must be in 1..12)"),
        ("- {name: a, model: m, inputs: [1]}", "entry 1: no 'error'"),
        ("- {name: a, model: m, inputs: [1], error: 0.1, batch: 2}", "unknown field 'batch'"),
        ("- {name: a, model: 'nope:f', inputs: ['1'], error: 0.1}", "cannot import 'nope'"),
        ("- {name: a, model: 'torch.nn:ReLU', inputs: 3, error: 0.1}", "inputs: 3 must be a list"),
        ("- {name: a, model: 'torch.nn:ReLU', inputs: ['3'], error: 5}", "error 5.0 must be"),
        ("- {name: a, model: 'torch.nn:ReLU', inputs: ['3'], error: high}", "'high' must be"),
        ("- {name: a, model: 'torch.nn:ReLU', inputs: ['3'], error: true}", "error True must be"),
        ("- {name: a, model: 'torch.nn:ReLU', inputs: [], error: 0.1}", "inputs: the list is empt"),
        ("- {name: a, model: 'torch.nn:ReLU', inputs: ['3xa'], error: 0.1}", "1: inputs: 3xa: "),
        (
            "- {name: a, model: 'torch.nn:ReLU', inputs: [8, 32], error: 0.1}",
            "1: inputs: [8, 32] is one shape, not a list of them; write [[8, 32]]",
        ),
        ("[]", "write a list of entries with name, model, inputs, error"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_entry(tmp_path, text, message):
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(BudgetError) as caught:
        read_candidates(path, load_platform("titanx"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_plot_is_one_file_with_its_script_inside(tmp_path):
    page = tmp_path / "epr.html"
    write_page(energy_error_figure(rank(ALL), platform="titanx", alpha=1), page)
    text = page.read_text()
    assert "Plotly.newPlot" in text
    assert ' src="http' not in text  # no element loads anything
    assert all(each.name in text for each in ALL)


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    page = tmp_path / "epr.html"
    page.mkdir()
    with pytest.raises(ReportError, match="it cannot be written"):
        write_page(energy_error_figure(rank(ALL), platform="titanx", alpha=1), page)
    assert list(tmp_path.iterdir()) == [page]


def test_without_plotly_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pytest-neuralpower\[html\]'"):
        energy_error_figure(rank(ALL), platform="titanx", alpha=1)
