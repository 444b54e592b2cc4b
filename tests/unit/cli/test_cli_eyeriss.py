"""``neuralpower eyeriss``: energies by data type, from a table and from a model."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pytest_neuralpower.eyeriss import layer_energy, read_table

ALEXNET = str(Path(__file__).parents[3] / "calibration" / "eyeriss" / "alexnet.txt")
PARTS = ("input_map_macs", "output_map_macs", "weight_macs", "computation_macs")


def test_a_table_is_priced_by_data_type(neuralpower):
    code, out, err = neuralpower("eyeriss", ALEXNET, "--json")
    assert (code, err) == (0, "")
    row = read_table(ALEXNET)[1]
    expected = layer_energy(row.shape, batch=row.batch, bits=row.bits, zeros=row.zeros)
    conv2 = json.loads(out)[1]
    assert conv2["weight_macs"] == expected.weight
    assert conv2["total_macs"] == pytest.approx(sum(conv2[part] for part in PARTS))
    assert conv2["energy_mj"] == expected.millijoules


def test_people_read_a_line_a_layer_and_the_sum(neuralpower):
    out = neuralpower("eyeriss", ALEXNET)[1]
    lines = out.splitlines()
    assert "2.2 pJ" in out
    assert [line.split()[0] for line in lines[-10:]] == [*"12345678", "sum", "share"]
    assert max(map(len, lines)) <= 100


def test_csv_and_another_cost_table(neuralpower):
    dear, cheap = (
        [float(row["energy_mj"]) for row in csv.DictReader(io.StringIO(out))]
        for out in (
            neuralpower("eyeriss", ALEXNET, "--csv")[1],
            neuralpower("eyeriss", ALEXNET, "--csv", "--platform", "eyeriss-accelergy")[1],
        )
    )
    assert all(one > other for one, other in zip(dear, cheap, strict=True))


def test_a_model_is_written_as_a_table_that_is_priced_alike(neuralpower, call, tmp_path):
    table = tmp_path / "conv.txt"
    code, out, err = neuralpower("eyeriss", *call, "--write", table, "--json")
    assert code == 0
    assert err == f"wrote {table}: 1 layers\n"
    (row,) = read_table(table)
    assert (row.batch, row.shape.filters, row.zeros.weight) == (2, 8, 0)
    again = json.loads(neuralpower("eyeriss", table, "--json")[1])
    assert again[0]["total_macs"] == json.loads(out)[0]["total_macs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "nowhere.txt: there is no such file"),
        ([ALEXNET, "--input", "1,3"], "a table has its own inputs"),
        (["torch.nn:ReLU"], "a model needs its inputs; add --input"),
        (["torch.nn:ReLU", "--input", "1,3"], "no layer multiplies and accumulates"),
        ([ALEXNET, "--platform", "titanx"], "--platform titanx: it is not an Eyeriss-like array"),
        ([ALEXNET, "--json", "--csv"], "only one format"),
        ([ALEXNET, "--write", "/proc/none/a.txt"], "cannot write /proc/none/a.txt"),
    ],
)
def test_a_mistake_is_one_line(neuralpower, arguments, message):
    code, out, err = neuralpower("eyeriss", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
