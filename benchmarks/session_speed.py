"""What a session of 500 guarded tests costs beside tracing their models, with and without reports.

    python benchmarks/session_speed.py [--runs N]

Each row is a pytest session of its own: 25 models of pytorchcv, each called at 20 batch sizes. The
first traces them in plain tests, without the plugin; what another takes beyond that is what the
plugin adds. Processor time between collection and the end of the session, the least of N runs, so
that other programs on the machine count little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from tabulate import tabulate

CONFTEST = """
    import json, os, time
    import pytest

    START = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(session):
        START.append(time.process_time())

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(config):
        if START and not hasattr(config, "workerinput"):
            with open(os.environ["SPENT"], "w") as file:
                json.dump(time.process_time() - START[0], file)
"""

MODELS = """
    import torch
    from pytorchcv.model_provider import get_model

    NAMES = (
        "alexnet", "vgg11", "resnet18", "resnet34", "resnet50", "preresnet18", "seresnet18",
        "resnext50_32x4d", "bagnet9", "densenet121", "peleenet", "squeezenet_v1_1", "sqnxt23_w1",
        "shufflenetv2_w1", "menet108_8x1_g3", "mobilenet_w1", "mobilenetv2_w1", "igcv3_w1",
        "mnasnet_b1", "darknet_ref", "xdensenet121_2", "vovnet27s", "dla34", "ghostnet",
        "efficientnet_b0",
    )
    with torch.device("meta"):
        BUILT = {name: get_model(name).eval() for name in NAMES}
    CALLS = [(name, batch) for batch in range(1, 21) for name in NAMES]

    def image(batch):
        return torch.empty(batch, 3, 224, 224, device="meta")
"""

TESTS = {
    "test_traced.py": """
        import pytest
        from models import BUILT, CALLS, image
        from pytest_neuralpower import trace

        @pytest.mark.parametrize("name, batch", CALLS)
        def test_model(name, batch):
            trace(BUILT[name], image(batch))
    """,
    "test_predicted.py": """
        import pytest
        from models import BUILT, CALLS, image
        from pytest_neuralpower import load_platform, predict

        TITANX = load_platform("titanx")

        @pytest.mark.parametrize("name, batch", CALLS)
        def test_model(name, batch):
            predict(BUILT[name], image(batch), platform=TITANX)
    """,
    "test_guarded.py": """
        import pytest
        from models import BUILT, CALLS, image

        @pytest.mark.parametrize("name, batch", CALLS)
        @pytest.mark.energy_budget(j=100_000)
        @pytest.mark.runtime_budget(s=100)
        def test_model(neuralpower, name, batch):
            neuralpower.predict(BUILT[name], image(batch))
    """,
}

OFF = ("-p", "no:neuralpower")
PLATFORM = "--np-platform=titanx"
NO_BASELINES = "--np-baselines=none"
#: What a session does -> its test file and options.
SESSIONS = {
    "traced, without the plugin": ("test_traced.py", *OFF),
    "traced, the plugin idle": ("test_traced.py",),
    "predicted, without the plugin": ("test_predicted.py", *OFF),
    "budgets": ("test_guarded.py", PLATFORM, NO_BASELINES),
    "budgets and baselines": ("test_guarded.py", PLATFORM),
    **{
        f"budgets and {suffix}": (
            "test_guarded.py",
            PLATFORM,
            NO_BASELINES,
            f"--np-report=r.{suffix}",
        )
        for suffix in ("json", "md", "html")
    },
    "all of it": (
        *("test_guarded.py", PLATFORM, "--np-report=r.json", "--np-report=r.md"),
        "--np-report=r.html",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with TemporaryDirectory() as name:
        repo = Path(name)
        for file, text in {"conftest.py": CONFTEST, "models.py": MODELS, **TESTS}.items():
            (repo / file).write_text(textwrap.dedent(text))
        _run(repo, "test_guarded.py", PLATFORM, "--np-update-baseline")
        spent = {
            what: min(_timed(repo, *arguments) for _ in range(runs))
            for what, arguments in SESSIONS.items()
        }
        tracing = next(iter(spent.values()))
        rows = [[what, each, f"{each / tracing - 1:+.1%}"] for what, each in spent.items()]
        print(tabulate(rows, ("500 tests", "CPU s", "beyond tracing"), floatfmt=".2f"))
        alone = {path.name: path.read_bytes() for path in sorted(repo.glob("r.*"))}
        print(", ".join(f"{name} {len(content) / 1e6:.1f} MB" for name, content in alone.items()))
        _run(repo, *SESSIONS["all of it"], "-n2")
        same = alone == {name: (repo / name).read_bytes() for name in alone}
        print(f"reports with -n 2 are the same, byte for byte: {'yes' if same else 'NO'}")


def _timed(repo: Path, *arguments: str) -> float:
    """Processor time of a session from the end of its collection on, s."""
    _run(repo, *arguments)
    return float(json.loads((repo / "spent.json").read_text()))


def _run(repo: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=repo,
        env={**os.environ, "SPENT": "spent.json", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])


if __name__ == "__main__":
    main()
