"""What 500 guarded tests and their reports cost beside tracing, and how large and quick a page is.

    python tests/benchmarks/report_speed.py

Sessions run in processes of their own, each twice; the quicker run counts. The page of a model of
2,000 layers is opened in Chromium where there is one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

TESTS = """
import functools
import pytest
import torch
from pytorchcv.model_provider import get_model
from pytest_neuralpower import trace

NAMES = ("resnet18", "mobilenet_w1", "squeezenet_v1_1", "vgg11", "alexnet")


@functools.cache
def model(name):
    with torch.device("meta"):
        return get_model(name).eval()


def image(batch):
    return torch.empty(batch, 3, 224, 224, device="meta")


def test_warm():
    for name in NAMES:
        trace(model(name), image(1))


@pytest.mark.parametrize("batch", range(1, 101))
@pytest.mark.parametrize("name", NAMES)
def test_traced(name, batch):
    trace(model(name), image(batch))


@pytest.mark.energy_budget(j=1e6)
@pytest.mark.parametrize("batch", range(1, 101))
@pytest.mark.parametrize("name", NAMES)
def test_guarded(neuralpower, name, batch):
    neuralpower.predict(model(name), image(batch))
"""

PAGE_PROBE = """
const [done] = arguments;
requestAnimationFrame(() => setTimeout(() => {
  const [entry] = performance.getEntriesByType("navigation");
  done([entry.domInteractive, entry.domContentLoadedEventEnd, performance.now()]);
}));
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_models.py").write_text(TESTS, encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        traced = _session(folder, "-k", "warm or traced")
        rows = [["500 tests that trace alone", traced, ""]]
        guarded = _session(folder, "-k", "warm or guarded", "--np-platform=titanx")
        rows.append(["500 guarded tests", guarded, f"{guarded / traced - 1:+.1%}"])
        for suffixes in ((".json",), (".md",), (".html",), (".json", ".md", ".html")):
            reports = [f"--np-report=report{suffix}" for suffix in suffixes]
            time_s = _session(folder, "-k", "warm or guarded", "--np-platform=titanx", *reports)
            row = [f"  with {' '.join(suffixes)}", time_s, f"{(time_s - guarded) / traced:+.1%}"]
            rows.append(row)
        print(tabulate(rows, ("session", "s", "of tracing"), floatfmt=".2f"))
        print(f"page of 500 tests: {(folder / 'report.html').stat().st_size / 1e6:.2f} MB\n")
        report = json.loads((folder / "report.json").read_text("utf-8"))
    _page(report)


def _session(folder: Path, *arguments: str) -> float:
    """Seconds that pytest says it took, imports and collection included in all alike."""
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    command = [sys.executable, "-m", "pytest", "-q", "-pno:cacheprovider", *arguments]
    times = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        times.append(float(re.findall(r" in ([\d.]+)s", done.stdout)[-1]))
    return min(times)


def _page(report: dict) -> None:
    """A page whose one model has 2,000 layers, those of the session in turn."""
    from pytest_neuralpower.reports.html import render

    layers = [layer for each in report["predictions"] for layer in each["layers"]][:2000]
    first = {**report["predictions"][0], "layers": layers}
    start = time.perf_counter()
    text = render({**report, "predictions": [first]})
    print(f"page of {len(layers):,} layers: {len(text.encode()) / 1e6:.2f} MB, ", end="")
    print(f"written in {(time.perf_counter() - start) * 1e3:.0f} ms")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        print("no chromium: the page was not opened")
        return
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "page.html"
        path.write_text(text, encoding="utf-8")
        rows = []
        for _ in range(5):
            opened.get("about:blank")
            opened.get(path.as_uri())
            rows.append(opened.execute_async_script(PAGE_PROBE))
    opened.quit()
    best = [min(values) for values in zip(*rows, strict=True)]
    worst = [max(values) for values in zip(*rows, strict=True)]
    names = ("table sorts and searches", "bars drawn", "all drawn, answers to clicks")
    print(
        tabulate(zip(names, best, worst, strict=True), ("", "least ms", "most ms"), floatfmt=".0f")
    )


if __name__ == "__main__":
    main()
