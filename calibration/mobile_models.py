"""Networks of MLPerf's submissions for boards, by the names and widths that the submitters gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pytest_neuralpower.model_source import import_object


def create(network: str, width: str) -> Any:
    """A network with random weights.

    Parameters
    ----------
    network
        ``mobilenet-v1``, ``mobilenet-v2``, ``mobilenet-v3-large``, ``mobilenet-v3-small`` (also
        ``-minimalistic``), ``efficientnet-lite0`` to ``4``, ``resnet50``.
    width
        Multiplier of the channels of a MobileNet; empty for others.
    """
    from pytorchcv.model_provider import get_model  # noqa: PLC0415
    from pytorchcv.models.mobilenet import get_mobilenet  # noqa: PLC0415
    from pytorchcv.models.mobilenetv2 import get_mobilenetv2  # noqa: PLC0415
    from pytorchcv.models.mobilenetv3 import get_mobilenetv3  # noqa: PLC0415

    if network == "resnet50":
        return get_model("resnet50")
    if network.startswith("efficientnet-lite"):
        return _timm(f"efficientnet_lite{network[-1]}")
    if network.endswith("-minimalistic"):  # at full width alone
        size = network.split("-")[2]
        return _timm(f"tf_mobilenetv3_{size}_minimal_100")
    scale = float(width)
    if network == "mobilenet-v1":
        model = get_mobilenet(width_scale=scale)
    elif network == "mobilenet-v2":
        model = get_mobilenetv2(width_scale=scale)
    else:
        version = network.removeprefix("mobilenet-v3-")
        model = get_mobilenetv3(version=version, width_scale=scale)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is of 224 pixels a side alone
    return model


def _timm(name: str) -> Any:
    return import_object(f"{Path(__file__).parent}/timm_models.py:create")(name, 224)
