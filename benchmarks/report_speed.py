"""How large the page of a model of 2,000 layers is, and how soon it answers in Chromium.

    python benchmarks/report_speed.py

What reports cost a whole session is in ``session_speed.py``.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

NAMES = ("densenet121", "densenet161", "densenet169", "densenet201")  # more than 2,000 layers
LAYERS = 2000

PAGE_PROBE = """
const [done] = arguments;
requestAnimationFrame(() => setTimeout(() => {
  const [entry] = performance.getEntriesByType("navigation");
  done([entry.domInteractive, entry.domContentLoadedEventEnd, performance.now()]);
}));
"""


def main() -> None:
    import torch
    from msgspec import Raw
    from pytorchcv.model_provider import get_model

    from pytest_neuralpower import Prediction, __version__, predict
    from pytest_neuralpower.guard.baseline import torch_version
    from pytest_neuralpower.guard.finding import Finding, Report
    from pytest_neuralpower.layer_codec import layers_json
    from pytest_neuralpower.report.html import render

    with torch.device("meta"):
        image = torch.empty(1, 3, 224, 224)
        found = [predict(get_model(name).eval(), image, platform="titanx") for name in NAMES]
    layers = tuple(layer for each in found for layer in each.layers)[:LAYERS]
    prediction = Prediction(layers, "titanx", found[0].platform_sha256, model="DenseNets")
    names = ("platform", "platform_sha256", "model", "batch", "energy_mj", "runtime_ms", "power_w")
    finding = Finding(
        name="test_models.test_model",
        test="test_models.py::test_model",
        **{name: getattr(prediction, name) for name in names},
        layers=Raw(layers_json(layers)),
    )
    report = Report(plugin=__version__, torch=torch_version(), predictions=(finding,))
    start = time.perf_counter()
    text = render(report)
    print(f"page of {len(layers):,} layers: {len(text.encode()) / 1e6:.2f} MB, ", end="")
    print(f"written in {(time.perf_counter() - start) * 1e3:.0f} ms")
    _open(text)


def _open(text: str) -> None:
    """Open a page five times, and print how soon it answered."""
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
