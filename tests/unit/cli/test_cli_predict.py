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


LANGUAGE = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

def llama(layers=2):
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2,
                         num_key_value_heads=1, num_hidden_layers=layers)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
"""


def test_generate_prints_a_table_and_json(neuralpower, call, tmp_path):
    pytest.importorskip("transformers")
    models = tmp_path / "languages.py"
    models.write_text(LANGUAGE)
    given = ["generate", f"{models}:llama", "--platform", "h200", "--prompt", "16"]
    code, out, err = neuralpower(*given, "--new-tokens", "9", "--batch", "2")
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM on h200, batch 2: 16 prompt + 9 new tokens" in out
    draft = ["--draft", f"{models}:llama", "--draft-arg", "layers=1", "--acceptance", "0"]
    code, out, _ = neuralpower(*given, "--new-tokens", "9", *draft, "--json")
    record = json.loads(out)
    assert record["draft"] == {
        "model": "LlamaForCausalLM", "tokens": 4, "acceptance": 0, "per_round": 1
    }  # fmt: skip
    assert record["decode"]["cached"] == list(range(16, 24))
    whole = record["ttft_ms"] + sum(record["decode"]["runtime_ms"])
    assert record["runtime_ms"] == pytest.approx(whole)
    assert set(record["runtime_interval_ms"]) == {"low", "high", "coverage"}
    code, _, err = neuralpower(*given, "--new-tokens", "9", "--platform", "h100")
    assert (code, err.count("\n")) == (2, 1)
    assert "give --platform once" in err
    code, _, err = neuralpower(*given, "--new-tokens", "9", "--experts", "some")
    assert (code, err.count("\n")) == (2, 1)
    assert "--experts some: write uniform, a number of experts, or a share such as 0.5" in err


def test_platforms_side_by_side_say_what_is_not_sound(neuralpower, call):
    code, out, _ = neuralpower("predict", *call, "-p", "a100", "-p", "gtx1080ti")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["a100", "gtx1080ti"]
    assert "not sound: they run in different modes" in out
    assert "not sound: on a100 the call waits for its host's launches" in out
    code, out, _ = neuralpower("predict", *call, "-p", "p100", "-p", "v100", "-p", "p100")
    assert "different modes" not in out
    assert out.count("\np100") == 2  # a row and its mode: given twice, it is compared once
    assert "p100 and v100" in out
    code, out, _ = neuralpower("predict", *call, "-p", "p100", "-p", "v100", "-p", "a100")
    assert "which is faster is not sure of any two of them" in out
    found = json.loads(neuralpower("predict", *call, "-p", "p100", "-p", "v100", "--json")[1])
    assert [each["platform"] for each in found] == ["p100", "v100"]
    code, _, err = neuralpower("predict", *call, "-p", "p100", "-p", "v100", "--csv")
    assert code == 2
    assert "--csv prints the layers of one platform" in err
