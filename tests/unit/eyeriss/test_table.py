"""The 25-column text of MIT's estimation tool."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_neuralpower.eyeriss import (
    Bits,
    ConvShape,
    EyerissError,
    TableRow,
    Zeros,
    format_table,
    layer_energy,
    parse_table,
    read_table,
    rows_from_layers,
    table_energy,
    write_table,
)
from pytest_neuralpower.layers import Layer, TensorSpec

#: AlexNet's second layer, batch 4, as the tool takes it.
CONV2 = "2,27,27,96,4,1000,16,5,5,48,256,2000,8,27,27,256,4,3000,16,1,1,2,2,2,2"
ROW2 = TableRow(
    2,
    ConvShape(27, 27, 96, 256, (5, 5), padding=(2, 2, 2, 2), groups=2),
    4,
    Bits(16, 8, 16),
    Zeros(1000, 2000, 3000),
)


def change(column: int, value: str) -> str:
    fields = CONV2.split(",")
    fields[column] = value
    return ",".join(fields)


def test_line_becomes_a_layer():
    assert parse_table(CONV2) == (ROW2,)


def test_blanks_comments_and_empty_lines_are_allowed():
    text = f"# AlexNet\n\n{CONV2.replace(',', ' ')}  # second\n"
    assert parse_table(text) == (ROW2,)


def test_layer_becomes_a_line_of_25_columns():
    assert format_table([ROW2]) == CONV2 + "\n"
    assert len(format_table([ROW2]).split(",")) == 25


@st.composite
def rows(draw: st.DrawFn) -> TableRow:
    groups = draw(st.integers(1, 3))
    shape = ConvShape(
        draw(st.integers(5, 30)),
        draw(st.integers(5, 30)),
        groups * draw(st.integers(1, 8)),
        groups * draw(st.integers(1, 8)),
        draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        draw(st.tuples(*[st.integers(0, 3)] * 4)),
        groups=groups,
    )
    batch = draw(st.integers(1, 9))
    return TableRow(
        draw(st.integers(0, 99)),
        shape,
        batch,
        Bits(*draw(st.tuples(*[st.integers(1, 32)] * 3))),
        Zeros(
            draw(st.integers(0, shape.inputs * batch)),
            draw(st.integers(0, shape.weights)),
            draw(st.integers(0, shape.outputs * batch)),
        ),
    )


@given(st.lists(rows(), min_size=1, max_size=4))
@settings(deadline=None)
def test_what_is_written_is_read_back(given_rows):
    assert parse_table(format_table(given_rows)) == tuple(given_rows)


def test_file_round_trip(tmp_path):
    write_table(tmp_path / "alexnet.txt", [ROW2])
    assert read_table(tmp_path / "alexnet.txt") == (ROW2,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3", "3 columns instead of 25"),
        (change(1, "x"), "input map height is 'x': give a whole number from 0"),
        (change(5, "-1"), "input map zeros is '-1'"),
        (change(6, "1.5"), "input map bits is '1.5'"),
        (change(6, "nan"), "input map bits is 'nan'"),
        (change(7, "0"), "kernel is .* at least 1"),
        (change(9, "40"), "filter channels is 40: it must divide input map channels = 96"),
        (change(9, "0"), "filter channels is 0"),
        (change(11, "999999"), "filter zeros is 999999: the layer has only 307200 values"),
        (change(12, "0"), "filter bits is 0"),
        (change(13, "26"), r"output map .* is \(26, 27, 256, 4\): .* \(27, 27, 256, 4\)"),
        (change(16, "5"), "output map"),
        (change(19, "0"), "stride is .* at least 1"),
    ],
)
def test_errors_name_file_line_and_column_in_one_line(line, message):
    with pytest.raises(EyerissError, match=rf"^net\.txt:3: {message}") as caught:
        parse_table(f"# header\n{CONV2}\n{line}\n", name="net.txt")
    assert "\n" not in str(caught.value)


def test_zero_batch_is_refused():
    line = CONV2.split(",")
    line[4] = line[16] = line[5] = line[17] = "0"
    with pytest.raises(EyerissError, match="input map maps is 0"):
        parse_table(",".join(line))


def test_empty_text_is_refused():
    with pytest.raises(EyerissError, match="no layer"):
        parse_table("# nothing\n")


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(EyerissError, match="there is no such file"):
        read_table(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EyerissError, match="cannot be read"):
        read_table(tmp_path / "binary.txt")


def test_dilation_has_no_column():
    dilated = TableRow(7, ConvShape(9, 9, 1, 1, (3, 3), dilation=(2, 2)))
    with pytest.raises(EyerissError, match="layer 7: the format has no column for dilation"):
        format_table([dilated])


def test_traced_layers_become_rows_that_can_be_priced():
    conv = Layer(
        "conv", "conv2d", "", (TensorSpec((2, 3, 8, 8), "float32"),),
        (TensorSpec((4, 3, 3, 3), "float32"),), (TensorSpec((2, 4, 6, 6), "float32"),), "float32",
        (("groups", 1), ("padding", (0, 0)), ("stride", (1, 1))),
    )  # fmt: skip
    relu = Layer("activation", "relu", "", conv.outputs, (), conv.outputs, "float32")
    table = rows_from_layers([conv, relu, conv])
    assert [row.index for row in table] == [1, 2]
    assert parse_table(format_table(table)) == table
    energies = table_energy(table)
    assert energies[0] == layer_energy(table[0].shape, batch=2)


def test_shipped_example_is_alexnet():
    path = Path(__file__).parents[3] / "calibration" / "eyeriss" / "alexnet.txt"
    rows = read_table(path)
    assert sum(row.shape.macs for row in rows) == 724_406_816
    assert sum(row.shape.weights for row in rows) == 60_954_656
    assert {row.batch for row in rows} == {16}
