"""``neuralpower trace`` and ``predict``: what they print for people and for machines."""

from __future__ import annotations

import csv
import io
import json

import pytest


def test_predict_prints_totals_and_layers(neuralpower, call):
    code, out, err = neuralpower("predict", *call, "--platform", "titanx")
    assert (code, err) == (0, "")
    assert "Conv2d on titanx: " in out
    assert "one call of 2 samples" in out
    assert "2x8x30x30" in out


def test_predict_json_adds_up(neuralpower, call):
    code, out, _ = neuralpower("predict", *call, "--platform", "titanx", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["batch"] == 2
    assert record["energy_mj"] == pytest.approx(sum(row["energy_mj"] for row in record["layers"]))
    assert record["layers"][0]["flops"] == 2 * 2 * 8 * 30 * 30 * 27


def test_intervals_in_json_name_their_ends(neuralpower, call):
    record = json.loads(neuralpower("predict", *call, "--platform", "titanx", "--json")[1])
    for interval in (record["runtime_interval_ms"], record["layers"][0]["runtime_interval_ms"]):
        assert set(interval) == {"low", "high", "coverage"}
        assert interval["low"] < interval["high"]
        assert 0 < interval["coverage"] < 1


def test_csv_has_one_row_a_layer(neuralpower, call):
    _, out, _ = neuralpower("predict", *call, "--platform", "titanx", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["op"] for row in rows] == ["conv2d"]
    assert json.loads(rows[0]["outputs"]) == [[2, 8, 30, 30]]
    assert float(rows[0]["runtime_ms"]) > 0
    _, out, _ = neuralpower("trace", *call, "--csv")
    assert next(csv.DictReader(io.StringIO(out)))["kind"] == "conv"


def test_trace_names_the_route_and_counts(neuralpower, call):
    code, out, _ = neuralpower("trace", *call)
    assert code == 0
    assert "389 k MACs" in out  # 2 x 8 x 30 x 30 x 27
    assert "traced by the function route" in out
    assert json.loads(neuralpower("trace", *call, "--json")[1])["route"] == "function"


def test_epr_refuses_a_page_in_no_folder_before_it_predicts(neuralpower, tmp_path):
    code, out, err = neuralpower(
        "epr", tmp_path / "none.yaml", "-p", "titanx", "--html", tmp_path / "nodir" / "epr.html"
    )
    assert (code, out) == (2, "")
    assert "there is no folder" in err
