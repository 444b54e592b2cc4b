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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, with the files of the calibration as one.

    Marks of ``xdist_group`` do nothing on pytest 9.2 (pytest-xdist's issue 1386).
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - xdist may be absent

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return CALIBRATED[0] if file in CALIBRATED else file

    return ByFile(config, log)
