"""A process beside a stub of NVIDIA's driver, so that the real ``pynvml`` meets its edges."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stub_gpu


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the stub of the NVIDIA driver needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("libnvidia_ml.c")
    flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread"]
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, *flags, "-o", target, source, "-lm"], check=True)
    return folder


@pytest.fixture(scope="module")
def other_process(driver_folder: Path) -> Iterator[ProcessPoolExecutor]:
    """A process in which ``libnvidia-ml.so.1`` is the stub."""
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        # The dynamic linker reads its path when a process starts.
        patch.setenv("LD_LIBRARY_PATH", str(driver_folder), prepend=os.pathsep)
        patch.setenv(stub_gpu.CONTROL, str(driver_folder / "control"))
        pool.submit(stub_gpu.behave).result()
        yield pool


@pytest.fixture
def beside_gpu(other_process: ProcessPoolExecutor) -> Iterator[Callable[..., Any]]:
    """Call a function of a module in the process beside the stub; what it raises comes here."""

    def call(function: Callable[..., Any], *arguments: object, **named: object) -> Any:
        return other_process.submit(function, *arguments, **named).result(timeout=60)

    yield call
    call(stub_gpu.behave)
