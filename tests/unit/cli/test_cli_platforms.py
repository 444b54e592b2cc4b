"""``neuralpower platforms`` and ``explain``: what a platform says of itself."""

from __future__ import annotations

import json

import pytest


def test_platforms_lists_the_shipped_ones(neuralpower):
    code, out, _ = neuralpower("platforms")
    assert code == 0
    assert "titanx" in out
    assert "titanx-tf" in out
    names = [entry["name"] for entry in json.loads(neuralpower("platforms", "--json")[1])]
    assert names == sorted(names)


def test_platforms_are_found_by_device_dtype_and_mode(neuralpower):
    code, out, _ = neuralpower("platforms", "list", "--device", "h200", "--dtype", "bfloat16")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:2]] == ["h200"]
    code, _, _ = neuralpower("platforms", "list", "--device", "h200", "--dtype", "float16")
    assert code == 2  # bfloat16 is another
    code, _, err = neuralpower("platforms", "list", "--device", "no such")
    assert code == 2
    assert "neuralpower platforms new NAME" in err


def test_a_platform_is_made_of_a_datasheet(neuralpower, tmp_path, call):
    out = tmp_path / "mine.json"
    given = ("--like", "rtx4090", "--bandwidth", "717", "--peak-fp32", "48.7")
    code, shown, _ = neuralpower("platforms", "new", "rtx4080", *given, "--out", out)
    assert code == 0
    assert "datasheet" in shown
    assert "power: other devices left out" in shown
    made = json.loads(out.read_text())
    assert made["hardware"]["bandwidth_gbs"] == 717
    assert made["peaks_gflops"]["float16"] == pytest.approx(165200 * 48.7 / 82.6, rel=0.01)
    small, like = tmp_path / "like.json", tmp_path / "small.json"
    neuralpower("platforms", "new", "rtx4090", "--out", like)
    neuralpower("platforms", "new", "tiny", *given, "--bandwidth", "10", "--out", small)
    relu = ("predict", "torch.nn:ReLU", "--input", "64,64,64,64", "--json", "--platform")
    slow, fast = (json.loads(neuralpower(*relu, path)[1])["runtime_ms"] for path in (small, like))
    assert slow > 50 * fast


def test_a_device_without_a_figure_is_refused(neuralpower):
    code, _, err = neuralpower("platforms", "new", "foo", "--peak-fp32", "20")
    assert code == 2
    assert "device 'foo': bandwidth_gbs is not known; give it, or --like DEVICE" in err
    _, _, err = neuralpower("platforms", "new", "rtx-4090")
    assert "device 'rtx-4090' (did you mean 'rtx4090'?): peak float32 is not known" in err


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_device_whose_name_no_file_can_have_is_refused(neuralpower, name):
    code, _, err = neuralpower("platforms", "new", name, "--like", "rtx4090")
    assert (code, err.count("\n")) == (2, 1)
    assert "must be a file's name, without / and \\; give a folder in --out" in err


def test_explain_writes_equations_with_their_terms(neuralpower):
    code, out, _ = neuralpower("explain", "titanx", "conv")
    assert code == 0
    assert "runtime_ms = " in out
    assert "power_w = " in out
