"""On an NVIDIA GPU: events, graphs, and layers timed in place, eager and replayed."""

from __future__ import annotations

import pytest
import torch

from pytest_neuralpower.calibrate.fit.rows import SENTINEL
from pytest_neuralpower.calibrate.measure.run_trial import on_bench, replayed, run_trial
from pytest_neuralpower.calibrate.measure.timers import CudaTimer
from pytest_neuralpower.calibrate.measure.trial import Bench, MeasuredHardware, Trial, TrialSkipped

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none here"
)
#: The last device: streams of graphs must not be those of the first.
DEVICE = f"cuda:{max(torch.cuda.device_count() - 1, 0)}"


def bench(mode: str) -> Bench:
    return Bench(DEVICE, "float32", MeasuredHardware(peak_gflops=1e4, bandwidth_gbs=1e3), mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_layers_in_place_add_up_to_about_the_whole(mode: str) -> None:
    rows = list(run_trial(Trial(SENTINEL, "network", SENTINEL, 0), bench(mode)))
    (whole,) = (row for row in rows if row.whole)
    total = sum(row.runtime_ms * row.calls for row in rows if not row.whole)
    assert 0.5 < total / whole.runtime_ms < 2


@pytest.mark.parametrize("ahead", [False, True])
def test_a_wait_of_the_device_takes_its_time(ahead: bool) -> None:
    with on_bench(bench("eager")):
        timer = CudaTimer(torch.device(DEVICE), ahead=ahead)
        timer.start()
        begin = timer.mark()
        torch.cuda._sleep(20_000_000)
        marks = [(begin, timer.mark())]
        assert 2 < timer.elapsed_ms(marks)[0] < 100
        assert timer.waited(marks) == [False]  # the host had gone on long before


def test_a_graph_computes_what_its_call_does_and_timing_goes_on_after_one_that_cannot_be() -> None:
    with on_bench(bench("graph")):
        count = torch.zeros((), device=DEVICE)
        replay = replayed(lambda: count.add_(1), bench("graph"))
        before = count.item()
        replay()
        assert count.item() == before + 1
        stream = torch.cuda.current_stream(DEVICE)
        with pytest.raises(TrialSkipped, match="cannot be captured"):
            replayed(count.item, bench("graph"))
        assert torch.cuda.current_stream(DEVICE) == stream
    rows = list(run_trial(Trial(SENTINEL, "network", SENTINEL, 0), bench("graph")))
    assert all(row.runtime_ms > 0 for row in rows)
