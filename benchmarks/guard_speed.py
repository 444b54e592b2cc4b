"""What one guarded test costs beyond importing torch, and what the idle plugin adds to pytest.

    python benchmarks/guard_speed.py

Prints medians; these machines are noisy, so the smallest run stands beside each median. What the
idle plugin adds is the processor time of a session of one empty test with the plugin beyond that of
one with ``-p no:neuralpower``, run in turns. Beside it stands the same of two sessions without the
plugin: what the machine's noise alone comes to.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory

from tabulate import tabulate

IMPORT_PROBE = """
import time, pytest, _pytest.terminal
start = time.perf_counter()
import pytest_neuralpower.plugin.plugin
print((time.perf_counter() - start) * 1e3)
"""

FIRST_GUARD_PROBE = """
import time, torch, numpy, pytest
from pytorchcv.model_provider import get_model
with torch.device("meta"):
    model = get_model("resnet50").eval()
image = torch.empty(1, 3, 224, 224, device="meta")
start = time.perf_counter()
from pytest_neuralpower.plugin.session import GuardSession, NeuralPower
from pytest_neuralpower.plugin.options import Settings
import pytest_neuralpower.tracing, pytest_neuralpower.platform.catalog
session = GuardSession(Settings())
marks = [(0, pytest.mark.energy_budget(j=1000, platform="titanx").mark)]
loaded = time.perf_counter()
guard = session.guard("test", marks, None)
read = time.perf_counter()
NeuralPower(guard).predict(model, image)
session.judge(guard, marks)
stop = time.perf_counter()
print((loaded - start) * 1e3, (read - loaded) * 1e3, (stop - read) * 1e3, (stop - start) * 1e3)
"""


def main() -> None:
    imports = _fresh(IMPORT_PROBE, runs=15)
    rows = [["import of the idle plugin (fresh process)", *_spread([run[0] for run in imports])]]
    rows += _idle()
    firsts = _fresh(FIRST_GUARD_PROBE, runs=7)
    parts = (
        "importing the session, tracer and predictor",
        "reading the markers, loading titanx",
        "first trace + predict + check of ResNet-50",
        "all of the first guarded test, beyond importing torch",
    )
    rows += [[part, *_spread([run[i] for run in firsts])] for i, part in enumerate(parts)]
    rows += _warm()
    print(tabulate(rows, ("what", "median ms", "least ms"), floatfmt=".2f"))


def _idle(turns: int = 40) -> list[list[object]]:
    """Whole sessions with and without the plugin; all other installed plugins stay out of both."""
    others = {point.name for point in entry_points(group="pytest11")} - {"neuralpower"}
    options = [f"-pno:{name}" for name in ("cacheprovider", *sorted(others))]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    without = "-pno:neuralpower"

    def spent(*more: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *options, *more],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3

    with TemporaryDirectory() as folder:
        Path(folder, "test_empty.py").write_text("def test_empty():\n    pass\n")
        spent(), spent(without)  # these write the bytecode
        runs = [(spent(without), spent(), spent(without)) for _ in range(turns)]
    off, on, again = zip(*runs, strict=True)
    return [
        [
            what,
            statistics.median(b - a for a, b in zip(off, other, strict=True)),
            min(other) - min(off),
        ]
        for what, other in (
            ("idle plugin in a session of one empty test", on),
            ("the same session again without it: noise", again),
        )
    ]


def _warm() -> list[list[object]]:
    import torch
    from pytorchcv.model_provider import get_model

    from pytest_neuralpower import load_platform, trace

    with torch.device("meta"):
        model = get_model("resnet50")
    image = torch.empty(1, 3, 224, 224, device="meta")
    platform = load_platform("titanx")
    traced = trace(model, image)
    network = list(traced) * 200
    batched = _timed(lambda: platform.predict(network), runs=5)
    rate = len(network) / statistics.median(batched) * 1e3
    print(f"batched prediction: {rate:,.0f} layers/s ({len(network):,} layers)\n")
    return [
        ["trace ResNet-50, warm", *_spread(_timed(lambda: trace(model, image)))],
        ["predict ResNet-50, warm", *_spread(_timed(lambda: platform.predict(traced)))],
    ]


def _timed(call: Callable[[], object], runs: int = 30) -> list[float]:
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _fresh(code: str, runs: int) -> list[list[float]]:
    outputs = []
    for _ in range(runs + 1):  # the first run writes the bytecode and warms the disk cache
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},  # as users have it: compiled once
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append([float(word) for word in done.stdout.split()])
    return outputs[1:]


def _spread(times: list[float]) -> tuple[float, float]:
    return statistics.median(times), min(times)


if __name__ == "__main__":
    main()
