"""A file that is not what it should be is refused with one line that says what to correct."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.files import decode, read_text

if TYPE_CHECKING:
    from pathlib import Path

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
