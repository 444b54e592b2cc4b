"""How values are shown: the unit that reads best, three significant digits, never a bare zero."""

from __future__ import annotations

import pytest

from pytest_neuralpower.units import SYMBOLS, UNITS, show, show_in, show_percent


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        ("energy", 5934.0, "5.93 J"),
        ("energy", 999.6, "1.00 J"),
        ("energy", 75_452.0, "75.5 J"),
        ("energy", 1e6, "1.00 kJ"),
        ("energy", 120.0, "120 mJ"),
        ("energy", 0.0421, "42.1 µJ"),
        ("energy", 1e-7, "0.0001 µJ"),
        ("runtime", 368.42, "368 ms"),
        ("runtime", 0.105, "105 µs"),
        ("runtime", 1500.0, "1.50 s"),
        ("power", 204.8, "205 W"),
        ("power", 99.96, "100 W"),
        ("power", 9.996, "10.0 W"),
        ("power", 0.5, "500 mW"),
        ("energy", 0.0, "0.00 µJ"),
        ("energy", -5934.0, "-5.93 J"),
    ],
)
def test_three_digits_in_the_unit_that_reads_best(quantity, value, text):
    assert show(quantity, value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0%"), (0.00001, "<0.1%"), (0.123, "12.3%"), (1.0, "100%"), (12.5, "1250%")],
)
def test_a_small_share_is_not_shown_as_nothing(share, text):
    assert show_percent(share) == text


def test_energy_is_power_times_runtime_in_the_packages_units():
    # 1 J over 1 s is 1 W: mJ / ms = W without a factor.
    assert UNITS["energy"]["j"] / UNITS["runtime"]["s"] == UNITS["power"]["w"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (300.0, "mj", "300 mJ"),
        (5934.0, "mj", "5,934 mJ"),
        (5934.0, "j", "5.93 J"),
        (0.5, "mj", "0.5 mJ"),
        (0.000512, "j", "5.12e-07 J"),
        (85_000.0, "j", "85.0 J"),
        (12_345.0, "j", "12.3 J"),
        (0.001, "uj", "1.00 µJ"),
    ],
)
def test_a_budget_is_shown_in_the_unit_it_was_written_in(value, unit, text):
    assert show_in("energy", value, unit) == text


def test_every_unit_has_a_symbol():
    assert {unit for units in UNITS.values() for unit in units} == set(SYMBOLS)
