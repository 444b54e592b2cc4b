"""A model repository under git, with a model of pytorchcv: each change shows as what it is."""

from __future__ import annotations

import subprocess

import pytest
from typer.testing import CliRunner

from pytest_neuralpower.cli import app

MODEL = """
from pytorchcv.model_provider import get_model
from torch import nn

def resnet():
    model = get_model("resnet18")
    stage = model.features.stage2
    # changes
    return model.eval()
"""

TEST = """
import pytest, torch
from model import resnet

BATCH = 4

@pytest.mark.regression(max_percent=0.1)
def test_resnet(neuralpower):
    image = torch.empty(BATCH, 3, 224, 224, device="meta")
    neuralpower.predict(neuralpower.build(resnet), image)
"""

WIDEN = """
    body = stage.unit2.body
    body.conv1.conv = nn.Conv2d(128, 160, 3, padding=1, bias=False)
    body.conv1.bn = nn.BatchNorm2d(160)
    body.conv2.conv = nn.Conv2d(160, 128, 3, padding=1, bias=False)
"""
RENAME = """
    stage._modules = {"first": stage.unit1, "second": stage.unit2}
"""
INSERT = """
    from pytorchcv.models.resnet import ResUnit
    stage.add_module("unit3", ResUnit(128, 128, 1, bottleneck=False, conv1_stride=False))
"""


@pytest.fixture
def model_repo(pytester, repo):
    """A repository whose baseline is committed; ``change(model=, test=)`` and ``run()``."""

    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *identity, *args], check=True, capture_output=True)

    class ModelRepo:
        platform = "titanx"

        def change(self, model="", test=("", "")):
            pytester.makepyfile(model=MODEL.replace("    # changes\n", model))
            pytester.makepyfile(test_model=TEST.replace(*test) if test[0] else TEST)

        def run(self, *args):
            return repo.run(f"--np-platform={self.platform}", *args)

        def compare(self):
            """Accept what there is, commit it, and compare the two commits."""
            self.run("--np-update-baseline")
            git("add", ".")
            git("commit", "-m", "change", "--allow-empty")
            result = CliRunner().invoke(app, ["compare", "main", "HEAD", "-t", "max_percent=0.1"])
            print(result.output)
            return result

    found = ModelRepo()
    found.change()
    git("init", "-b", "main")
    assert found.run("--np-update-baseline").ret == 0
    git("add", ".")
    git("commit", "-m", "base")
    git("checkout", "-b", "topic")
    return found


def test_widen_one_convolution(model_repo):
    model_repo.change(WIDEN)
    result = model_repo.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "costs more than its baseline: ResNet on titanx",
            "*4 layers * more operations: +25.0% (weights 128x128x3x3 -> *",
            "*the 4 layers that changed most, of 4:",
            "*more operations; more bytes*stage2.unit2.body.conv?.conv",
        ]
    )
    compared = model_repo.compare()
    assert compared.exit_code == 1
    assert "more operations: +25.0%" in compared.output


def test_rename_a_module(model_repo):
    model_repo.change(RENAME)
    result = model_repo.run("--np-report=r.md")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*as baseline*"])
    compared = model_repo.compare()
    assert compared.exit_code == 0
    assert "renamed: features.stage2.unit1." in compared.output
    assert "new layer" not in compared.output


def test_insert_a_block(model_repo):
    model_repo.change(INSERT)
    result = model_repo.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*7 layers * new layer: features.stage2.unit3.*"])
    compared = model_repo.compare()
    assert compared.exit_code == 1
    assert "vanished" not in compared.output


def test_change_the_batch(model_repo):
    model_repo.change(test=("BATCH = 4", "BATCH = 16"))
    result = model_repo.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "  the batch changed from 4 to 16: per sample *",
            "*68 layers * batch change: 4 -> 16, ...",
        ]
    )
    compared = model_repo.compare()
    assert compared.exit_code == 1
    assert "more operations" not in compared.output


def test_recalibrate_the_platform(model_repo, pytester):
    folder = pytester.path / "budgets/baselines/titanx"
    (path,) = folder.glob("*.yaml")
    # As accepted on a calibration that said 1.5 times as much of everything.
    import re

    def scaled(match):
        return f'"{match[1]}": {float(f"{1.5 * float(match[2]):.6g}")}'

    old = re.sub(r'"(energy_mj|runtime_ms)": ([\d.e-]+)', scaled, path.read_text())
    old = re.sub('platform_sha256: "......', 'platform_sha256: "000000', old)
    path.write_text(old)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-am", "old"],
                   check=True, capture_output=True)  # fmt: skip
    subprocess.run(["git", "branch", "-f", "main"], check=True)
    result = model_repo.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*as baseline*"])
    compared = model_repo.compare()
    assert compared.exit_code == 0
    assert "recalibrated" in compared.output
    assert "(-33.3%), model +0.00 µJ (+0.0%)" in compared.output
    assert "the model is unchanged: 68 layers" in compared.output
