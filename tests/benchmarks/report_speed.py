"""What reports of 500 predictions cost beside tracing them, and how large and quick a page is.

    python tests/benchmarks/report_speed.py

Processor time, so that other programs on the machine count little. The page of a model of 2,000
layers is opened in Chromium where there is one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

NAMES = ("resnet18", "mobilenet_w1", "squeezenet_v1_1", "vgg11", "alexnet")
BATCHES = range(1, 101)

PAGE_PROBE = """
const [done] = arguments;
requestAnimationFrame(() => setTimeout(() => {
  const [entry] = performance.getEntriesByType("navigation");
  done([entry.domInteractive, entry.domContentLoadedEventEnd, performance.now()]);
}));
"""


def main() -> None:
    import torch
    from pytorchcv.model_provider import get_model

    from pytest_neuralpower import load_platform, trace
    from pytest_neuralpower.reports import html, json, markdown
    from pytest_neuralpower.reports.session_report import details, session_report

    platform = load_platform("titanx")
    with torch.device("meta"):
        models = [get_model(name).eval() for name in NAMES]
    calls = [
        (model, torch.empty(batch, 3, 224, 224, device="meta"))
        for batch in BATCHES
        for model in models
    ]
    for model, image in calls[: len(models)]:
        platform.predict(trace(model, image))
    traces, tracing = _timed(lambda: [trace(*call) for call in calls])
    predictions, predicting = _timed(lambda: [platform.predict(each) for each in traces])
    found, recording = _timed(lambda: [details(each) for each in predictions])
    report = session_report(
        {
            f"test_{number:03}": [_record(each, more)]
            for number, (each, more) in enumerate(zip(predictions, found, strict=True))
        },
        [],
    )
    rows = [["tracing", tracing], ["predicting", predicting], ["records of layers", recording]]
    for module in (json, markdown, html):
        text, spent = _timed(lambda module=module: module.render(report))
        rows.append([f"{module.__name__}, {len(text.encode()) / 1e6:.2f} MB", spent])
    shares = [[name, spent, f"{spent / tracing:.1%}"] for name, spent in rows]
    print(f"{len(calls)} predictions, {sum(map(len, traces)):,} layers")
    print(tabulate(shares, ("", "CPU s", "of tracing"), floatfmt=".3f"), end="\n\n")
    _page(report)


def _timed(call: Callable[[], object]) -> tuple[object, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def _record(prediction: object, more: dict) -> dict:
    """As a session's record of a test without a budget."""
    names = ("platform", "platform_sha256", "model", "batch", "energy_mj", "runtime_ms", "power_w")
    return {
        "test": "test_models.py::test_model",
        **{name: getattr(prediction, name) for name in names},
        "untrusted_share": 0.0,
        "budgets": [],
        "outcome": "unbounded",
        "failure": "",
        **more,
    }


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
            found = opened.execute_async_script(PAGE_PROBE)
            if all(found):  # Chromium gives no times for some of its first pages
                rows.append(found)
    opened.quit()
    best = [min(values) for values in zip(*rows, strict=True)]
    worst = [max(values) for values in zip(*rows, strict=True)]
    names = ("table sorts and searches", "bars drawn", "all drawn, answers to clicks")
    print(
        tabulate(zip(names, best, worst, strict=True), ("", "least ms", "most ms"), floatfmt=".0f")
    )


if __name__ == "__main__":
    main()
