"""NVIDIA devices that are not there, for a process that runs beside the stub of their driver.

The functions below are called within that process (see the fixture ``beside_gpu``).
"""

import ctypes
import os
from pathlib import Path

#: Variable that names the file by which the stub is told how to behave.
CONTROL = "NEURALPOWER_STUB_NVML"
FIRST = "GPU-00000000-0000-0000-0000-000000000001"
SECOND = "GPU-00000000-0000-0000-0000-000000000002"
#: Watts of the first device; the second draws twice as much.
IDLE_W, LOAD_W = 50.0, 200.0
NOT_SUPPORTED, FUNCTION_NOT_FOUND, DRIVER_NOT_LOADED = 3, 13, 9
CORRUPTED_INFOROM, UNKNOWN_ERROR = 14, 999


def behave(**settings: float) -> None:
    """Tell the devices how to behave from now on; a setting that is not given is normal."""
    path = Path(os.environ[CONTROL])
    part = path.with_suffix(".part")
    part.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    part.replace(path)


def kernel(index: int = 0, seconds: float = 0.005) -> None:
    """Run something on a device; ends when it has ended."""
    ctypes.CDLL("libnvidia-ml.so.1").stub_run(index, ctypes.c_double(seconds))
