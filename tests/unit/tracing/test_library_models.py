"""Real models: MACs identical to ``FlopCounterMode`` on meta, by the function route alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pytest_neuralpower.tracing import trace

PYTORCHCV = (
    "alexnet", "vgg11", "bn_vgg11b", "resnet18", "resnet50", "resnetd50b", "preresnet18",
    "resnext50_32x4d", "seresnet18", "densenet121", "squeezenet_v1_1", "mobilenet_w1",
    "mobilenetv2_w1", "mobilenetv3_large_w1", "efficientnet_b0", "shufflenetv2_w1",
    "shufflenet_g3_w1", "mnasnet_b1", "ghostnet", "sepreresnet18", "igcv3_w1", "darknet53",
    "densenet40_k12_cifar10", "resnet20_cifar10", "nin_cifar10", "dla34",
    "hrnet_w18_small_v1", "bagnet17", "seresnext50_32x4d", "menet108_8x1_g3", "fdmobilenet_w1",
    "vovnet27s", "proxylessnas_cpu", "spnasnet", "diapreresnet20_cifar10",
)  # fmt: skip


def macs_by_torch(model: torch.nn.Module, *args: Any, **kwargs: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(
            *[value.to("meta") for value in args],
            **{name: value.to("meta") for name, value in kwargs.items()},
        )
    return counter.get_total_flops() // 2


def compare(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    result = trace(model, *args, **kwargs)
    assert result.route == "function"
    assert result.macs == macs_by_torch(model, *args, **kwargs)
    known = dict(model.named_modules(remove_duplicate=False))
    assert all(layer.path in known for layer in result)
    assert all(layer.covered for layer in result), result.fallbacks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PYTORCHCV)
def test_image_model(name: str) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    size = 32 if "cifar" in name else 224
    with torch.device("meta"):
        model = provider.get_model(name).eval()
    compare(model, torch.empty(1, 3, size, size))


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bert": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "Roberta": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "Albert": {
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "embedding_size": 16,
    },
    "DistilBert": {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 2},
    "Electra": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "GPTNeoX": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "Llama": {
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2,
    },
    "Mistral": {
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2,
    },
    "Qwen2": {
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2,
    },
    "Gemma": {
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 1, "head_dim": 8,
    },
    "Phi": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "OPT": {"hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2},
    "XLMRoberta": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "Dinov2": {"hidden_size": 32, "num_attention_heads": 4},
    "ViT": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "DeiT": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "Swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
    "ConvNext": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_transformer(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    options = dict(TRANSFORMERS[family])
    if "hidden_size" in options:
        options["num_hidden_layers"] = 2
    config = getattr(transformers, f"{family}Config")(**options)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}Model")(config).eval()
    if family in ("ViT", "DeiT", "Swin", "ConvNext", "Dinov2"):
        compare(model, torch.empty(2, 3, 224, 224))
        return
    inputs = {"input_ids": torch.full((2, 16), 5)}
    if family == "T5":
        inputs["decoder_input_ids"] = torch.full((2, 8), 5)
    compare(model, **inputs)
