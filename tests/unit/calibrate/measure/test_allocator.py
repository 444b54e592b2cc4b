"""Memory that is freed stays with the process, so that a layer takes the same time every time."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from pytest_neuralpower.calibrate.measure.timers import keep_memory

PROGRAM = """
import resource, statistics, torch
from pytest_neuralpower.calibrate.measure.timers import keep_memory

def page_faults():
    for _ in range(10):
        source.clone()
    faults = []
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        source.clone()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(faults)  # the system may take pages back now and then

torch.set_num_threads(1)
source = torch.ones(12_000_000)  # 48 MB: beyond the allocator's largest threshold
print(page_faults())
assert keep_memory()
print(page_faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_a_large_tensor_is_got_from_the_system_once(uncounted_environment):
    if not keep_memory():
        pytest.skip("the C library is not glibc")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=uncounted_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    given, kept = map(int, run.stdout.split())
    assert given > 5
    assert kept * resource.getpagesize() < 48e6 / 10
