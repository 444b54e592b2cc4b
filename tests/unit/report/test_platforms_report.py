"""The list of platforms: who measured what, how wrong it is, in a terminal's width."""

from __future__ import annotations

import re

import pytest
import yaml

from pytest_neuralpower.platform.catalog import list_platforms, load_fitted, load_platform
from pytest_neuralpower.report.accuracy import platform_text, platforms_text


@pytest.fixture(scope="module")
def listing() -> str:
    return platforms_text([load_platform(name).summary() for name in list_platforms()])


def entry(listing: str, name: str) -> str:
    """The lines of one platform."""
    found = re.search(rf"^{name} .*(?:\n    .*)*", listing, re.MULTILINE)
    assert found is not None
    return found[0]


def test_lists_every_platform_within_80_columns(listing: str) -> None:
    lines = listing.splitlines()
    for name in list_platforms():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_says_who_knows_runtime_and_power_apart(listing: str) -> None:
    assert re.match(r"gtx1080ti +float32 +public +transferred\n +NVIDIA GeForce GTX 1080 Ti",
                    entry(listing, "gtx1080ti"))  # fmt: skip
    assert re.match(r"eyeriss +int16 +none +analytic", entry(listing, "eyeriss"))


def test_gives_the_error_of_each_kind_by_quantity(listing: str) -> None:
    accuracy = load_fitted("cpu-broadwell").accuracy
    text = entry(listing, "cpu-broadwell")
    for quantity, section in (("runtime", "runtime"), ("energy", "layer_energy")):
        conv = accuracy[section]["conv"]
        error = conv["held_out"][conv["chosen"]]["mape"]
        assert re.search(rf"^    {quantity}: conv {error:.1f}, linear ", text, re.MULTILINE)


def test_power_that_was_transferred_has_its_error_on_other_devices(listing: str) -> None:
    error = load_fitted("gtx1080ti").accuracy["power"]["mape"]
    assert f"    power: other devices left out {error:.1f}" in entry(listing, "gtx1080ti")
    assert "other devices" not in entry(listing, "titanx-tf")
    assert "other devices" not in entry(listing, "h200")


@pytest.mark.parametrize("name", list_platforms())
def test_one_platform_in_full_is_yaml_with_all_of_its_summary(name: str) -> None:
    summary = load_platform(name).summary()
    found = yaml.safe_load(platform_text(summary))
    assert (found["name"], found["sha256"]) == (name, summary.sha256)
    assert found["tiers"] == summary.tiers
