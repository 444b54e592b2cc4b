"""How long it takes to load a baseline of 2,000 layers, and to compare a model with it.

    python benchmarks/compare_speed.py

Best of 15, CPU time of the one thread; PyYAML's own loaders beside ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from tabulate import tabulate
from torch import nn

from pytest_neuralpower import Prediction, load_platform, predict
from pytest_neuralpower.guard.baseline import (
    baseline_of,
    baseline_text,
    read_baseline,
    write_baseline,
)
from pytest_neuralpower.guard.compare import compare_predictions, judge
from pytest_neuralpower.guard.tolerance import DEFAULT

BLOCKS = 200  # of ten layers
PLATFORM = load_platform("titanx")


class Block(nn.Module):
    """Ten layers: three convolutions with their norms, ReLU and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(256, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, 256, 1), nn.BatchNorm2d(256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        return torch.relu(x + self.norm3(self.conv3(y)))


def chain(widths: list[int], batch: int = 1) -> Prediction:
    with torch.device("meta"):
        model = nn.Sequential(*map(Block, widths)).eval()
        return predict(model, torch.empty(batch, 256, 28, 28), platform=PLATFORM)


def best_ms(run: Callable[[], object], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return 1e3 * min(times)


def main() -> None:
    base = chain([64] * BLOCKS)
    baseline = baseline_of(base, test="t.py::t", torch="2")
    text = baseline_text(baseline)
    rows: list[tuple[str, float, float | None]] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "baseline.yaml"
        write_baseline(path, text)
        rows.append(("load", best_ms(lambda: read_baseline(path)), 100))
    fast = getattr(yaml, "CSafeLoader", None)
    if fast is not None:
        rows.append(("  PyYAML with libyaml", best_ms(lambda: yaml.load(text, fast), 2), None))
    rows.append(("  PyYAML alone", best_ms(lambda: yaml.safe_load(text), 1), None))
    rows.append(("predict again", best_ms(lambda: baseline.repredict(PLATFORM)), None))
    one = [96 if at == BLOCKS // 2 else 64 for at in range(BLOCKS)]
    cases = {
        "the same model": base,
        "one block wider": chain(one),
        "one block inserted": chain([*one, 64]),
        "another batch": chain([64] * BLOCKS, 8),
        "every block wider": chain([96] * BLOCKS),
        "every block wider by another width": chain([65 + at for at in range(BLOCKS)]),
    }
    for name, head in cases.items():

        def run(head: Prediction = head) -> None:
            found = compare_predictions(base, head, baseline.totals, baseline.platform_sha256)
            judge(found, DEFAULT)

        rows.append((f"compare: {name}", best_ms(run), 50))
    print(f"{len(base.layers):,} layers, {len(text) / 1e3:,.0f} kB of YAML")
    print(tabulate(rows, ("step", "ms", "reach"), floatfmt=".1f", missingval=""))


if __name__ == "__main__":
    main()
