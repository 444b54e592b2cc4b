"""What a calibration says when it is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_neuralpower.calibrate.measure.run import closing_lines
from pytest_neuralpower.platform.catalog import load_platform

CALIBRATED = Path("calibration/cpu-sapphirerapids/cpu-sapphirerapids.json")


@pytest.mark.parametrize(
    ("meter", "says"),
    [
        ("none", "energy: none: no meter was used; if you know the power under load, --watts W"),
        ("rapl", "energy: none: the meter read too few trials; measure longer"),
    ],
)
def test_it_says_why_there_is_no_energy(pytestconfig: pytest.Config, meter: str, says: str) -> None:
    path = pytestconfig.rootpath / CALIBRATED
    platform = load_platform(path)
    (record,) = platform.provenance["calibration"]
    records = [{**record, "facts": {**record["facts"], "meter": meter}}]
    platform = replace(platform, provenance={**platform.provenance, "calibration": records})
    (line,) = (
        each for each in closing_lines(path, platform, path.parent) if each.startswith("energy")
    )
    assert line.startswith(says)
