"""Memory that is freed stays with the process, so that a layer takes the same time every time."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from pytest_neuralpower.calibrate.measure.timers import keep_memory

PROGRAM = """
import resource, statistics, sys, torch
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    from pytest_neuralpower.calibrate.measure.timers import keep_memory
    assert keep_memory()
source = torch.ones(12_000_000)  # 48 MB: beyond the allocator's largest threshold
for _ in range(10):
    source.clone()
faults = []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    source.clone()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults))  # the system may take pages back now and then
"""


def page_faults(how, environment):
    """In the median of one copy."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_a_large_tensor_is_got_from_the_system_once(uncounted_environment):
    if not keep_memory():
        pytest.skip("the C library is not glibc")
    page = resource.getpagesize()
    assert page_faults("give", uncounted_environment) > 5
    assert page_faults("keep", uncounted_environment) * page < 48e6 / 10
