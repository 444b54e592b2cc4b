"""Real networks that no calibration sees: pytorchcv's, and transformers' from configurations.

Chosen before any was measured, for breadth of families; each at batch 1 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BATCHES = (1, 4)


class RealNetwork(NamedTuple):
    """A network, and what makes it and the inputs of one call."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]


def _image(side: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, 3, side, side),)


def _words(count: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randint(0, 1000, (batch, count)),)


def _cv(name: str, side: int = 224) -> RealNetwork:
    def make() -> nn.Module:
        from pytorchcv.model_provider import get_model

        return get_model(name, pretrained=False).eval()

    return RealNetwork(name, make, _image(side))


def _transformer(
    name: str, model: str, inputs: Callable[[int], tuple[Tensor, ...]], **config: Any
) -> RealNetwork:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, f"{model.removesuffix('Model')}Config")(**config)
        return getattr(transformers, model)(made).eval()

    return RealNetwork(name, make, inputs)


NETWORKS = (
    _cv("alexnet"),
    _cv("vgg16"),
    _cv("resnet18"),
    _cv("resnet50"),
    _cv("preresnet18"),
    _cv("resnext50_32x4d"),
    _cv("seresnet50"),
    _cv("densenet121"),
    _cv("squeezenet_v1_1"),
    _cv("mobilenet_w1"),
    _cv("mobilenetv2_w1"),
    _cv("mobilenetv3_large_w1"),
    _cv("shufflenet_g3_w1"),
    _cv("shufflenetv2_w1"),
    _cv("efficientnet_b0"),
    _cv("mnasnet_b1"),
    _cv("ghostnet"),
    _cv("inceptionv3", 299),
    _cv("bninception"),
    _transformer(
        "vit-tiny", "ViTModel", _image(224),
        hidden_size=192, num_attention_heads=3, intermediate_size=768,
    ),
    _transformer(
        "vit-small", "ViTModel", _image(224),
        hidden_size=384, num_attention_heads=6, intermediate_size=1536,
    ),
    _transformer("convnext-tiny", "ConvNextModel", _image(224)),
    _transformer("bert-base, 128 words", "BertModel", _words(128)),
    _transformer("distilbert, 64 words", "DistilBertModel", _words(64)),
    _transformer("gpt2, 64 words", "GPT2Model", _words(64), use_cache=False),
)  # fmt: skip
