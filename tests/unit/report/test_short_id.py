"""How a test's id is shortened to fit a line."""

from __future__ import annotations

import pytest

from pytest_neuralpower.report.terminal import short_id

WHOLE = "tests/unit/test_net.py::TestNet::test_small[a::b/c]"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (60, WHOLE),
        (51, WHOLE),
        (50, "…/test_net.py::TestNet::test_small[a::b/c]"),
        (35, "…::TestNet::test_small[a::b/c]"),
        (25, "…::test_small[a::b/c]"),
        (20, "…::test_s…ll[a::b/c]"),
    ],
)
def test_folders_go_first_then_the_file_then_classes(width, expected):
    found = short_id(WHOLE, width)
    assert found == expected
    assert len(found) <= width


def test_a_narrow_line_still_shows_something():
    assert len(short_id(WHOLE, 3)) == 20
