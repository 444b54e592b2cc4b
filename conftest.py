"""What every test of the project shares: pytest's own fixture for running pytest, and ``-n``."""

from __future__ import annotations

import os
from typing import Any

import pytest

# Read when torch and NumPy load. The matrices here are small, and where each of several processes
# starts a thread per core (pytest -n), the threads wait for each other: six times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester"]

#: Files whose tests look at one calibration of this machine's processor, measured once.
CALIBRATED = ("tests/unit/calibrate/measure/test_calibration.py", "tests/plugin/test_measure.py")

#: The files that take longest, to be handed out first: left for the end, one of them would keep one
#: worker busy after all others are done.
LONGEST = (
    *CALIBRATED,
    "tests/plugin/test_xdist.py",
    "tests/accuracy/test_shipped_platforms.py",
    "tests/unit/calibrate/fit/test_accuracy.py",
    "tests/unit/calibrate/fit/test_fit.py",
    "tests/unit/compress/test_prune_weights.py",
    "tests/browser/test_html_page.py",
    "tests/unit/compress/test_cli_prune.py",
    "tests/plugin/test_misuse.py",
    "tests/plugin/test_advice.py",
    "tests/plugin/test_baselines.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first where files are handed to workers."""
    if hasattr(config, "workerinput"):
        place = {file: number for number, file in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, with the files of the calibration as one.

    Marks of ``xdist_group`` do nothing on pytest 9.2 (pytest-xdist's issue 1386).
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - xdist may be absent

    config.option.loadscopereorder = False  # by the number of tests, which says little here

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return CALIBRATED[0] if file in CALIBRATED else file

    return ByFile(config, log)
