"""From a model and its inputs to a prediction."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_neuralpower import load_platform, predict, trace
from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.platform.catalog import predict_call
from pytest_neuralpower.platform.price import FittedPlatform


class Scaled(nn.Module):
    """A model with a keyword of its own, called like ours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, image: torch.Tensor, *, platform: float = 1.0) -> torch.Tensor:
        return self.conv(image) * platform


IMAGE = torch.empty(4, 3, 16, 16, device="meta")


def test_a_model_is_traced_and_predicted() -> None:
    model = Scaled().eval()
    found = predict(model, IMAGE, platform="titanx")
    assert found == load_platform("titanx").predict(trace(model, IMAGE))
    assert (found.batch, found.model, found.platform) == (4, "Scaled", "titanx")
    assert found.route
    assert found.layers[0].layer.path == "conv"


def test_a_platform_is_taken_loaded_by_name_or_by_path(
    platform: FittedPlatform, tmp_path: Path
) -> None:
    platform.save(tmp_path / "toy.json")
    expected = predict(Scaled(), IMAGE, platform=platform).runtime_ms
    for given in (tmp_path / "toy.json", str(tmp_path / "toy.json")):
        assert predict(Scaled(), IMAGE, platform=given).runtime_ms == expected
    with pytest.raises(PlatformError, match="unknown platform 'toy'"):
        predict(Scaled(), IMAGE, platform="toy")


@pytest.mark.parametrize("given", [5, ["titanx"], FittedPlatform])
def test_what_is_no_platform_is_one_clear_line(given: Any) -> None:
    says = f"platform={given!r}: give a name, such as 'titanx', the path of a platform file, or "
    with pytest.raises(PlatformError, match=f"^{re.escape(says)}what load_platform returns$"):
        predict(Scaled(), IMAGE, platform=given)


def test_a_model_s_own_keyword_called_platform_is_passed_on() -> None:
    found = predict_call(Scaled(), [IMAGE], {"platform": 2.0}, platform="titanx")
    assert found.layers[-1].layer.op == "mul"


def test_the_package_loads_nothing_heavy_until_it_is_used() -> None:
    program = (
        "import sys, pytest_neuralpower\n"
        "print([m for m in ('numpy', 'torch', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
