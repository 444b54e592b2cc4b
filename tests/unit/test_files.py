"""A file that is not what it should be is refused with one line that says what to correct."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.files import decode, read_bytes, read_table, read_text, read_yaml

Share = Annotated[float, Meta(ge=0, le=1)]


class Circle(Struct, tag_field="shape", tag="circle", forbid_unknown_fields=True):
    radius: float


class Square(Struct, tag_field="shape", tag="square", forbid_unknown_fields=True):
    sides: tuple[int, int]


class Drawing(Struct, forbid_unknown_fields=True):
    name: str
    shapes: dict[str, Circle | Square]
    shares: list[dict[str, Share]] = []
    colour: Literal["red", "blue"] = "red"

    def __post_init__(self) -> None:
        if self.name == "no":
            raise ValueError("a drawing has a name")


def refusal(data: Any) -> str:
    with pytest.raises(PlatformError) as found:
        decode(Drawing, data, file="file x.json", error=PlatformError, renew="draw it")
    text = str(found.value)
    assert text.startswith("file x.json: ")
    assert text.endswith("; draw it")
    assert "\n" not in text
    return text[len("file x.json: ") : -len("; draw it")]


def test_decodes_json_and_what_another_parser_made() -> None:
    text = '{"name": "one", "shapes": {"a": {"shape": "circle", "radius": 2}}}'
    options = {"file": "", "error": PlatformError, "renew": ""}
    found = decode(Drawing, text, **options)  # type: ignore[arg-type]
    assert found == Drawing("one", {"a": Circle(2.0)})
    data = {"name": "one", "shapes": {"a": {"shape": "circle", "radius": 2}}}
    assert decode(Drawing, data, **options) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": 3}, "name must be a string, not 3"),
        ({"size": 1}, "unknown field 'size'"),
        ({"colour": "green"}, "colour is 'green'; allowed: blue, red"),
        ({"shapes": []}, "shapes must be an object, not []"),
        ({"shapes": {"a": {"shape": "line"}}}, "shapes.a.shape is 'line'; allowed: circle, squar"),
        ({"shapes": {"a": {"radius": 1}}}, "field 'shapes.a.shape' is missing"),
        (
            {"shapes": {"a": {"shape": "circle", "radius": 1}, "b": {"shape": "square"}}},
            "field 'shapes.b.sides' is missing",
        ),
        (
            {"shapes": {"a": {"shape": "square", "sides": [1, 2.5]}}},
            "shapes.a.sides[1] must be a whole number, not 2.5",
        ),
        (
            {"shapes": {"a": {"shape": "square", "sides": [1]}}},
            "shapes.a.sides must be a list of length 2, not [1]",
        ),
        ({"shares": [{}, {"x": 0.5, "y": -1}]}, "shares[1].y must be a number >= 0, not -1"),
        ({"shares": [{"x": 2}]}, "shares[0].x must be a number <= 1, not 2"),
        ({"name": "no"}, "a drawing has a name"),
    ],
)
def test_names_the_field_its_value_and_what_is_allowed(changed: dict[str, Any], says: str) -> None:
    assert refusal({"name": "one", "shapes": {}, **changed}).startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON, or truncated (line 1: "),
        ('{"name": "one",\n"shapes": {', "not JSON, or truncated (line 2: "),
        ('{"name":\n\n one}', "not JSON, or truncated (line 3: invalid character)"),
        ('{"name": NaN}', "NaN is not a finite number"),
        ('{"name": -Infinity}', "-Infinity is not a finite number"),
        ('{"name": 1e999}', "a number that is too large is not a finite number"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[]", "the whole must be an object, not []"),
    ],
)
def test_says_where_text_is_not_json(text: str, says: str) -> None:
    assert refusal(text).startswith(says)


@pytest.mark.parametrize("name", ["none.txt", ".", "binary", "a\0b"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlatformError, match=r"^file x: (there is no|it is a dir|it cannot)[^\n]*"):
        read_text(tmp_path / name, file="file x", error=PlatformError)


def yaml_refusal(text: str) -> str:
    """What is wrong with a YAML file, which is said within a second."""
    start = time.perf_counter()
    with pytest.raises(PlatformError) as found:
        read_yaml(text, file="x.yaml", error=PlatformError, renew="mend it")
    assert time.perf_counter() - start < 1
    said = str(found.value)
    assert said.startswith("x.yaml:")
    assert said.endswith("; mend it")
    assert "\n" not in said
    assert len(said) < 5000
    return said


def aliases(levels: int, width: int) -> str:
    """A list whose last level repeats the first ``width ** levels`` times."""
    lines = ["k0: &k0 [x]"]
    for level in range(1, levels + 1):
        lines.append(f"k{level}: &k{level} [{', '.join([f'*k{level - 1}'] * width)}]")
    return "\n".join(lines)


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (aliases(8, 10), "more than 100,000 values"),
            ("a: &a {x: 1}\nb: &b\n" + "  - *a\n" * 60_000, "more than 100,000 values"),
            ("[" + "1," * 200_000 + "]", "more than 100,000 values"),
            (f"a: &a {'x' * 1_000_000}\nb: [{'*a, ' * 100}]", "more than 100,000 values"),
            ("a: &a [*a]", "'a' is within what it names"),
            ("a: &a\n  <<: *a", "'a' is within what it names"),
            ("[" * 500 + "]" * 500, "nest"),
            ("{a: " * 5000, "nest"),
            ("a: 2001-13-45", "x.yaml:1: not YAML (month must be in 1..12"),
            ("b: 1\na: !!timestamp x", "x.yaml:2: not YAML"),
            ("a: !!int x", "not YAML"),
            ("a: !!int ''", "not YAML"),
            ("a: !!bool maybe", "not YAML"),
            ("a: !!float [1]", "not YAML"),
            ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
            (f"a: 1{'0' * 400}", "a number of 401 characters"),
            (f"a: 1{':59' * 100_000}", "a number of 300001 characters"),
            ("a: \x01", "not YAML"),
            ("a: [\n", "x.yaml:1: not YAML"),
            ("? [a]\n: b", "unhashable"),
            ("--- a\n--- b", "a single document"),
        ],
    )
    def test_what_is_none_or_more_than_it_says_is_one_line(self, text: str, says: str) -> None:
        assert says in yaml_refusal(text)

    def test_aliases_and_merges_of_ordinary_size_are_read(self) -> None:
        text = "defaults: &d {inputs: [[1, 2]]}\na: {<<: *d, x: 1}\nb: *d\n"
        found = read_yaml(text, file="", error=PlatformError)
        assert found["a"] == {"inputs": [[1, 2]], "x": 1}
        assert found["b"] == found["defaults"]
        assert read_yaml("", file="", error=PlatformError) is None

    def test_thousands_of_models_are_read(self) -> None:
        entry = "{model: 'a:b', inputs: [[1, 2]], arguments: {n: 3}}"
        text = "models:\n" + "".join(f"  m{i}: {entry}\n" for i in range(7_000))
        assert len(read_yaml(text, file="", error=PlatformError)["models"]) == 7_000


class TestWhatIsNoFile:
    def refusal(self, path: Path) -> str:
        start = time.perf_counter()
        with pytest.raises(PlatformError) as found:
            read_text(path, file="it", error=PlatformError)
        assert time.perf_counter() - start < 1
        return str(found.value)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no name here")
    def test_a_pipe_that_nobody_writes_to(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert "it: it is a pipe or a device" in self.refusal(tmp_path / "pipe")

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices here")
    def test_a_device_that_never_ends(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").symlink_to("/dev/zero")
        assert "it: it is a pipe or a device" in self.refusal(tmp_path / "x.yaml")

    def test_a_file_larger_than_any(self, tmp_path: Path) -> None:
        with (tmp_path / "large").open("wb") as file:
            file.truncate(100 * 2**30)  # nothing is written
        assert "it: it has more than 64 MiB" in self.refusal(tmp_path / "large")

    def test_a_few_bytes_that_unpack_to_more(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv.gz"
        path.write_bytes(gzip.compress(bytes(65 * 2**20), 9))
        assert path.stat().st_size < 100_000
        assert "it: it has more than 64 MiB" in self.refusal(path)
        whole = gzip.compress(b"a,b\n1,2\n")
        path.write_bytes(whole)
        assert read_bytes(path, file="it", error=PlatformError) == b"a,b\n1,2\n"
        path.write_bytes(whole[:-12])
        assert "it ends too early" in self.refusal(path)


def test_a_cell_larger_than_csv_takes_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"a,b\n1,2\n3,{'0' * 200_000}\n")
    rows = read_table(path, file="rows.csv", error=PlatformError)
    assert next(rows) == (2, {"a": "1", "b": "2"})
    with pytest.raises(PlatformError, match=r"rows\.csv, line 3: field larger than field limit"):
        next(rows)
