"""``neuralpower platforms`` and ``explain``: what a platform says of itself."""

from __future__ import annotations

import json


def test_platforms_lists_the_shipped_ones(neuralpower):
    code, out, _ = neuralpower("platforms")
    assert code == 0
    assert "titanx" in out
    assert "titanx-tf" in out
    names = [entry["name"] for entry in json.loads(neuralpower("platforms", "--json")[1])]
    assert names == sorted(names)


def test_explain_writes_equations_with_their_terms(neuralpower):
    code, out, _ = neuralpower("explain", "titanx", "conv")
    assert code == 0
    assert "runtime_ms = " in out
    assert "power_w = " in out
