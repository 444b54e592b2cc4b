"""Profiles are read whole or refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.layers import TensorSpec

HEADER = "kind,op,inputs,weights,outputs,params,runtime_ms,power_w,energy_mj"
GOOD = "conv,conv2d,8x64x56x56,128x64x3x3;128,8x128x56x56,groups=1;padding=1x1;bias=true,0.9,212.5,"


def write(path: Path, *lines: str) -> Path:
    path = path / "profile.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_becomes_its_layer(tmp_path: Path) -> None:
    path = write(tmp_path, "# device: Toy GPU: rev 2", "# dtype: float16", HEADER, GOOD)
    profile = read_profile(path)
    assert profile.provenance == {"device": "Toy GPU: rev 2", "dtype": "float16"}
    row = profile.rows[0]
    assert (row.runtime_ms, row.power_w, row.line) == (0.9, 212.5, 4)
    assert row.layer.inputs == (TensorSpec((8, 64, 56, 56), "float16"),)
    assert row.layer.weights[1] == TensorSpec((128,), "float16")
    assert row.layer.params == (("bias", True), ("groups", 1), ("padding", (1, 1)))
    assert row.layer.macs == 8 * 56 * 56 * 128 * 64 * 9


def test_a_tensor_may_have_a_dtype_of_its_own(tmp_path: Path) -> None:
    line = "embedding,,8x16:int64,100x32,8x16x32,,0.1,,"
    layer = read_profile(write(tmp_path, HEADER, line)).rows[0].layer
    assert layer.inputs == (TensorSpec((8, 16), "int64"),)
    assert (layer.op, layer.dtype, layer.outputs[0].dtype) == ("embedding", "float32", "float32")


def test_parameters_are_numbers_words_and_sizes(tmp_path: Path) -> None:
    line = (
        "activation,relu,8x16,,8x32,mode=LSTM;steps=8;eps=0.5;kernel=3x1;bidirectional=false,0.1,,"
    )
    assert read_profile(write(tmp_path, HEADER, line)).rows[0].layer.params == (
        ("bidirectional", False),
        ("eps", 0.5),
        ("kernel", (3, 1)),
        ("mode", "LSTM"),
        ("steps", 8),
    )


def test_energy_gives_power(tmp_path: Path) -> None:
    line = "activation,relu,8x8,,8x8,,0.5,,100"
    assert read_profile(write(tmp_path, HEADER, line)).rows[0].power_w == 200.0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("convolution,,8,8,8,,1,,", "kind 'convolution' is not one of conv, linear"),
        ("norm,,8x8,,8x8,,-1,,", "runtime_ms '-1' must be positive"),
        ("norm,,8x8,,8x8,,0,,", "runtime_ms '0' must be positive"),
        ("norm,,8x8,,8x8,,nan,,", "runtime_ms 'nan' must be positive"),
        ("norm,,8x8,,8x8,,fast,,", "runtime_ms 'fast' is not a number"),
        ("norm,,8x8,,8x8,,1,-3,", "power_w '-3' must be positive"),
        ("norm,,8 by 8,,8x8,,1,,", "'8 by 8' is not a shape such as 8x64x56x56"),
        ("norm,,8x8,,8x8,eps,1,,", "parameter 'eps' is not name=value"),
        ("norm,,8x8,,8x8", "5 cells under 9 columns"),
        ("norm,,8x8:float23,,8x8,,1,,", "dtype 'float23' is not one of float64, float32"),
        ("norm,,8x-8,,8x8,,1,,", "inputs '8x-8': sizes are 1 or more"),
        ("norm,,8x8,,0x8,,1,,", "outputs '0x8': sizes are 1 or more"),
        (
            "conv,,8x3x8x8,,8x4x6x6,,1,,",
            "conv has inputs 8x3x8x8, weights empty, outputs 8x4x6x6; it needs inputs NxCxHxW",
        ),
        ("rnn,lstm,8x16,,8x32,,1,,", "rnn has inputs 8x16, weights empty, outputs 8x32; it needs"),
        ("activation,,8x8,,,,1,,", "activation has inputs 8x8, weights empty, outputs empty;"),
        ("network,,8x8,,8x8,,1,,", "kind 'network' is not one of conv, linear"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, "# device: Toy", HEADER, GOOD, line)
    with pytest.raises(ProfileError) as found:
        read_profile(path)
    assert str(found.value).startswith(f"profile {path}, line 4: {says}")
    assert "\n" not in str(found.value)


def test_an_unknown_dtype_of_all_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"line 3: dtype 'float23' is not one of"):
        read_profile(write(tmp_path, "# dtype: float23", HEADER, GOOD))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["kind,inputs,outputs"], "no column 'runtime_ms'"),
        ([HEADER + ",watts", GOOD], "unknown column 'watts'"),
        ([HEADER], "no measured rows"),
    ],
)
def test_a_table_without_what_is_needed_is_refused(
    tmp_path: Path, lines: list[str], says: str
) -> None:
    with pytest.raises(ProfileError, match=says):
        read_profile(write(tmp_path, *lines))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.csv: there is no such file"):
        read_profile(tmp_path / "none.csv")
