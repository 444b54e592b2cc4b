"""Whatever a file or a marker holds, it is taken or refused with an error of ours, soon.

``make fuzz`` tries 100,000 inputs, ``make test`` 2,000 of them. They are the same every time: an
input is told by its kind and number, which a failure names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mutations import VALUES, changed_text, changed_tree
from torch import nn

from pytest_neuralpower import load_platform, predict, trace
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.compress.plan import apply_plan, read_plan
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.guard.baseline import baseline_of, baseline_text, read_baseline
from pytest_neuralpower.guard.budget import MARKERS, parse_marker
from pytest_neuralpower.guard.compare_sources import compare_sources, read_pair
from pytest_neuralpower.guard.finding import Finding, Report
from pytest_neuralpower.guard.tolerance import DEFAULT, parse_texts, parse_tolerance
from pytest_neuralpower.layer_codec import layers_json
from pytest_neuralpower.model_source import make_inputs, parse_inputs, read_input
from pytest_neuralpower.platform.catalog import list_platforms
from pytest_neuralpower.platform.file import content_hash
from pytest_neuralpower.plugin.budget_files import read_entries
from pytest_neuralpower.report.accuracy import platform_facts, platform_text
from pytest_neuralpower.report.epr import read_candidates
from pytest_neuralpower.report.formats import render
from pytest_neuralpower.report.terminal import prediction_text

#: Of all kinds together, as many of each (``make fuzz``); every day fewer of those that take long.
INPUTS = int(os.environ.get("NEURALPOWER_FUZZ", "0"))
EVERY_DAY = {
    "markers": 400, "shapes": 400, "profile": 300, "budget": 250, "recipe": 250, "plan": 100,
    "epr": 100, "baseline": 80, "report": 80, "platform": 40,
}  # fmt: skip

MOST_S = 1.0
MOST_MB = 200


class Net(nn.Module):
    """A layer or two of most kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embedding = nn.Embedding(10, 8)
        self.linear = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.deep(torch.relu(self.norm(self.conv(image))))
        x = self.up(torch.max_pool2d(x, 2)).flatten(2).transpose(1, 2)
        y = self.rnn(self.embedding(ids))[0]
        y = self.attention(y, x[:, :5], x[:, :5])[0]
        z = self.linear(y.half().float()).softmax(-1) @ torch.ones(4, 3)
        return torch.cat([z, z * 2], dim=-1).sum()


INPUT = torch.empty(2, 3, 16, 16, device="meta"), torch.zeros(2, 5, dtype=torch.int64)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture(scope="module", autouse=True)
def all_is_loaded() -> None:
    """What a call that no model takes loads, 800 modules of torch, is loaded once."""
    with contextlib.suppress(NeuralPowerError):
        trace(nn.Conv2d(3, 4, 3), torch.empty(1, 2, 8, 8, device="meta"))


#: A kind's input of that number is made by a generator, and tried: errors of ours are passed over.
Try = Callable[[random.Random], object]


def dumped(tree: Any) -> str:
    """JSON as any writer might write it, also of what JSON has no words for."""
    return json.dumps(tree, default=str)


@pytest.fixture
def markers() -> Try:
    names = ["mj", "j", "ms", "w", "platform", "per", "samples", "tokens", "max_mj", "baseline"]

    def run(rng: random.Random) -> None:
        given = {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randint(0, 3))}
        args = tuple(rng.choice(VALUES) for _ in range(rng.choice([0, 0, 0, 1])))
        with contextlib.suppress(NeuralPowerError):
            parse_marker(rng.choice(list(MARKERS)), args, given, in_file=rng.random() < 0.5)
        with contextlib.suppress(NeuralPowerError):
            parse_texts([changed_text("max_percent=2 layer_max_mj=0.5", rng)], "option")
        parse_tolerance(args, given, "regression")

    return run


@pytest.fixture
def shapes() -> Try:
    given: list[Any] = [
        *("1,3,224,224", "ids=1,128:int64", "8:bool"),
        *([1, 2], {"shape": [2, 3], "dtype": "int64", "range": [0, 9], "name": "x"}),
    ]

    def run(rng: random.Random) -> None:
        value = rng.choice(given)
        if isinstance(value, str):
            value = changed_text(value, rng)
            parse_inputs([value])
        else:
            value = changed_tree(value, rng)
        for tensor in make_inputs([read_input(value)])[0]:
            assert tensor.is_meta or tensor.nbytes <= MOST_MB * 2**20

    return run


def _changed_file(text: str, tree: Any, rng: random.Random, write: Callable[[Any], str]) -> str:
    return changed_text(text, rng) if rng.random() < 0.5 else write(changed_tree(tree, rng))


def _as_yaml(tree: Any) -> str:
    with contextlib.suppress(yaml.YAMLError, UnicodeError):
        return yaml.safe_dump(tree, allow_unicode=True)
    return dumped(tree)


def _store(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


BUDGET = """\
defaults: &defaults
  inputs: [[1, 3, 32, 32], "8,128:int64"]
models:
  resnet:
    <<: *defaults
    model: models.py:resnet
    arguments: {depth: 18}
    platforms: [titanx, ../mine.json]
    budgets: {energy: [{mj: 120}, {mj: 15, per: sample}], runtime: {ms: 3}, power: {w: 200}}
    tolerance: {max_percent: 2, baseline: resnet}
    tags: [vision]
  llama:
    model: "models:llama"
    generate: {prompt: 128, new_tokens: 16, draft: "models:small", draft_arguments: {n: 2}}
    budgets: {energy: {j: 1}}
"""


@pytest.fixture
def budget(tmp_path: Path) -> Try:
    tree = yaml.safe_load(BUDGET)

    def run(rng: random.Random) -> None:
        text = _changed_file(BUDGET, tree, rng, _as_yaml)
        read_entries(_store(tmp_path / "a.budget.yaml", text), "a.budget.yaml")

    return run


EPR = """\
- {name: relu, model: "torch.nn:ReLU", inputs: ["1,8"], error: 0.24}
- {name: linear, model: "torch.nn:Linear", arguments: {in_features: 8, out_features: 4},
   inputs: [[2, 8]], error: 0.5}
"""


@pytest.fixture
def epr(tmp_path: Path) -> Try:
    tree, platform = yaml.safe_load(EPR), load_platform("titanx")

    def run(rng: random.Random) -> None:
        text = _changed_file(EPR, tree, rng, _as_yaml)
        read_candidates(_store(tmp_path / "models.yaml", text), platform)

    return run


@pytest.fixture
def baseline(tmp_path: Path, net: nn.Module) -> Try:
    platform = load_platform("titanx")
    prediction = predict(net, *INPUT, platform=platform)
    text = baseline_text(baseline_of(prediction, test="test_a.py::test_b[é]", torch="2.9"))
    tree = yaml.safe_load(text)
    whole = _store(tmp_path / "whole.yaml", text)

    def run(rng: random.Random) -> None:
        path = _store(tmp_path / "a.yaml", _changed_file(text, tree, rng, _as_yaml))
        read_baseline(path, prediction if rng.random() < 0.5 else None)
        pair = read_pair(str(path), str(whole), tmp_path)
        compare_sources(*pair, platforms=[], tolerance=DEFAULT)

    return run


@pytest.fixture
def report(tmp_path: Path, net: nn.Module) -> Try:
    import msgspec

    prediction = predict(net, *INPUT, platform="titanx")
    finding = Finding(
        "a", "test_a.py::test_b", "titanx", prediction.platform_sha256, "Net", 2,
        prediction.energy_mj, prediction.runtime_ms, prediction.power_w, outcome="ok",
        layers=msgspec.Raw(layers_json(prediction.layers)),
    )  # fmt: skip
    text = render(Report(plugin="1", torch="2", predictions=(finding,)))
    tree = json.loads(text)
    whole = _store(tmp_path / "whole.json", text)

    def run(rng: random.Random) -> None:
        path = _store(tmp_path / "a.json", _changed_file(text, tree, rng, dumped))
        pair = read_pair(str(path), str(whole), tmp_path)
        compare_sources(*pair, platforms=[], tolerance=DEFAULT)

    return run


@pytest.fixture
def plan(tmp_path: Path) -> Try:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))

    texts = _plans(build)

    def run(rng: random.Random) -> None:
        text = rng.choice(texts)
        changed = _changed_file(text, json.loads(text), rng, dumped)
        apply_plan(build(), read_plan(_store(tmp_path / "plan.json", changed)))

    return run


def _plans(build: Callable[[], nn.Module]) -> list[str]:
    from pytest_neuralpower.compress.plan import Mask, Plan, structure_hash, weights_hash

    model = build()
    common = {
        "version": 1, "model": "Sequential", "structure": structure_hash(model),
        "weights": weights_hash(model.state_dict()), "pruned_weights": "0" * 64,
        "platform": "titanx", "platform_sha256": "1" * 64, "quantity": "energy", "limit": 1.0,
        "batch": 1, "inputs": ("1,3,8,8",), "before": 2.0, "after": 0.9, "met": True,
        "layers": {"0": 0.5},
    }  # fmt: skip
    masks = {"0.weight": Mask.of(torch.rand(8, 3, 3, 3) > 0.5)}
    made = (
        Plan(**common, granularity="weight", masks=masks, channels={}),  # type: ignore[arg-type]
        Plan(**common, granularity="channel", masks={}, channels={"0": (0, 2, 4)}),  # type: ignore[arg-type]
    )
    return [json.dumps(each.to_json()) for each in made]


@pytest.fixture
def platform(tmp_path: Path, net: nn.Module) -> Try:
    folder = Path(load_platform.__code__.co_filename).parents[1] / "platforms"
    trees = [json.loads((folder / f"{name}.json").read_text("utf-8")) for name in list_platforms()]
    traced = trace(net, *INPUT)

    def run(rng: random.Random) -> None:
        tree = changed_tree(rng.choice(trees), rng)
        tree.pop("sha256", None)
        with contextlib.suppress(ValueError, TypeError):
            tree["sha256"] = content_hash(json.loads(dumped(tree)))
        loaded = load_platform(_store(tmp_path / "mine.json", dumped(tree)))
        # What was taken prices every layer: nothing waits for the first of its kind.
        with refusals_as_failures():
            prediction = loaded.predict(traced)
            for each in prediction.layers:
                for value in (each.runtime_ms, each.energy_mj):
                    assert value is None or (np.isfinite(value) and value >= 0), each
            shown = [prediction_text(prediction, 0), platform_text(loaded.summary())]
            shown += map(str, platform_facts(loaded).values())
            assert "\x1b" not in "".join(shown)

    return run


@contextlib.contextmanager
def refusals_as_failures() -> Any:
    try:
        yield
    except NeuralPowerError as error:
        raise AssertionError(f"a file was taken, and refused later: {error}") from error


PROFILE = """\
# device: Toy GPU
# dtype: float32
kind,op,inputs,weights,outputs,params,runtime_ms,power_w,energy_mj
conv,conv2d,8x64x56x56,128x64x3x3;128,8x128x56x56,groups=1;padding=1x1;stride=1x1;bias=true,0.9,212,
linear,linear,8x64,32x64,8x32,,0.1,,2
rnn,lstm,8x5x16,64x16;64x16,8x5x16,mode=LSTM;hidden_size=16;num_layers=1;bidirectional=false;steps=5,1,,
embedding,,8x16:int64,100x32,8x16x32,,0.1,,
pool,max_pool2d,8x64x56x56,,8x64x28x28,kernel=2x2,0.2,,
attention,attention,8x4x16x32;8x4x16x32;8x4x16x32,,8x4x16x32,is_causal=true,0.2,,
"""


@pytest.fixture
def profile(tmp_path: Path) -> Try:
    lines = [line.split(",") for line in PROFILE.splitlines()]

    def run(rng: random.Random) -> None:
        text = _changed_file(
            PROFILE, lines, rng, lambda rows: "\n".join(_csv_line(row) for row in rows)
        )
        read_profile(_store(tmp_path / "profile.csv", text))

    return run


def _csv_line(row: Any) -> str:
    return ",".join(map(str, row)) if isinstance(row, list) else str(row)


RECIPE = """\
name: toy
device: Toy
mode: eager
dtype: float32
tiers: {runtime: measured, power: public}
hardware: {peak_gflops: 1000, bandwidth_gbs: 100, multiprocessors: 40, limit_w: 250}
peaks_gflops: {float16: 2000}
host: {layer_ms: 0.01, factor: 1.5}
sources:
  - {profile: profile.csv, title: Our own rows}
  - {reader: deepbench_conv, path: deepbench/conv.csv, options: {select: {a: [1, 2]}}}
overheads: {conv: [bytes_out]}
power: {networks: networks.csv, fixed: {base_w: 10}}
designs: {linear: {candidates: [physical]}}
notes: [One sentence.]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Try:
    tree = yaml.safe_load(RECIPE)

    def run(rng: random.Random) -> None:
        _store(tmp_path / "recipe.yaml", _changed_file(RECIPE, tree, rng, _as_yaml))
        read_recipe(tmp_path)

    return run


@pytest.mark.parametrize("kind", EVERY_DAY)
@pytest.mark.filterwarnings("ignore")
def test_is_taken_or_refused_with_an_error_of_ours(
    kind: str, request: pytest.FixtureRequest
) -> None:
    run: Try = request.getfixturevalue(kind)
    faults: list[str] = []
    taken = 0
    for number in range(INPUTS // len(EVERY_DAY) or EVERY_DAY[kind]):
        seed = int.from_bytes(hashlib.sha256(f"{kind} {number}".encode()).digest()[:8], "big")
        rng = random.Random(seed)
        before, start, wall = _most_mb(), time.process_time(), time.perf_counter()
        try:
            run(rng)
            taken += 1
        except NeuralPowerError as error:
            said = str(error)
            lines = said.split("\n")
            fit = all(line.isprintable() and len(line) <= 4000 for line in lines)
            if not fit or len(lines) > (101 if kind == "budget" else 1):
                faults.append(f"{kind} {number}: an unfit message {said[:200]!r}")
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:200]}"
            faults.append(f"{kind} {number}: {text} at {_where(error)}")
        # The first loads modules. What other processes of the machine take is not the input's.
        seconds, waited = time.process_time() - start, time.perf_counter() - wall
        if number and (seconds > MOST_S or waited > 10 * MOST_S):
            faults.append(f"{kind} {number}: {seconds:.1f} s, {waited:.1f} s waited")
        if number and (more := _most_mb() - before) > MOST_MB:
            faults.append(f"{kind} {number}: {more:.0f} MB")
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:40])
    assert taken, "no changed input was taken: the inputs that are changed are wrong"


def _most_mb() -> float:
    """The most memory that the process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _where(error: BaseException) -> str:
    step, place = error.__traceback__, ""
    while step is not None:
        code = step.tb_frame.f_code
        if "pytest_neuralpower" in code.co_filename or "fuzz" in code.co_filename:
            place = f"{Path(code.co_filename).name}:{step.tb_lineno} {code.co_name}"
        step = step.tb_next
    return place
