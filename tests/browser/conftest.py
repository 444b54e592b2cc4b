"""A real report of a real session, opened in Debian's or the system's Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MODELS = """
import os
import torch
from torch import nn

CHANGED = bool(os.environ.get("CHANGED"))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.conv2(self.act1(self.norm1(self.conv1(x))))


class Deep(nn.Module):
    # 8 stages of 50 blocks of 5 layers: 2,000.
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(32) for _ in range(50))) for _ in range(8)
        )

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3)
        self.blocks = nn.Sequential(*(Block(64) for _ in range(3)))
        if CHANGED:
            self.blocks[1].conv1 = nn.Conv2d(64, 128, 3, padding=1)
            self.blocks[1].norm1 = nn.BatchNorm2d(128)
            self.blocks[1].conv2 = nn.Conv2d(128, 64, 1)
        self.extra = nn.Identity() if CHANGED else nn.MaxPool2d(2)
        self.odd = nn.ModuleDict({"</script><img src=x onerror=alert(1)>": nn.ReLU()})

    def forward(self, x):
        x = self.extra(self.blocks(self.stem(x)))
        for layer in self.odd.values():
            x = layer(x)
        return x
"""

TESTS = """
import pytest
import torch
from models import CHANGED, Deep, Small


@pytest.mark.energy_budget(j=40)
@pytest.mark.runtime_budget(ms=100)
def test_deep(neuralpower):
    neuralpower.predict(neuralpower.build(Deep).eval(), torch.empty(4, 32, 56, 56))


@pytest.mark.energy_budget(mj=150 if CHANGED else 5000)
@pytest.mark.runtime_budget(ms=5)
@pytest.mark.regression(max_percent=2)
def test_small(neuralpower):
    neuralpower.predict(neuralpower.build(Small).eval(), torch.empty(8, 3, 64, 64))
"""


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``page.html`` and ``report.json`` of a model that has changed."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "models.py").write_text(MODELS, encoding="utf-8")
    (folder / "test_guard.py").write_text(TESTS, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    # Lines are counted elsewhere; counting them, and hypothesis, would take most of the time.
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "CHANGED") and not name.startswith("COVERAGE_")
    }
    off = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist")
    command = [sys.executable, "-m", "pytest", "-q", *off, "--np-platform=titanx"]
    _run([*command, "--np-update-baseline"], folder, plain)
    _run(
        [*command, "--np-report=page.html", "--np-report=report.json"],
        folder,
        {**plain, "CHANGED": "1"},
    )
    return folder


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a budget is broken on purpose


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A headless Chromium of this machine, driven by its own chromedriver."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Containers have little shared memory and no user namespaces.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where screenshots go: ``NEURALPOWER_SCREENSHOTS``, to look at them, or a temporary folder."""
    folder = Path(os.environ.get("NEURALPOWER_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
