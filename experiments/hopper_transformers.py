"""Print what transformers take on the Hopper platforms, and how much of it is only a fallback's.

python experiments/hopper_transformers.py [PLATFORM ...]

ViT-B/16 and BERT-base at batch 1 and 32, and the prefill of 2048 tokens of a language model of
1.2 billion parameters (Llama 3.2 1B's sizes) at batch 1 and 8, all bfloat16, from their
configurations: nothing is downloaded and nothing computed. No measured network is beside them:
the two platforms know kernels alone. Needs the package ``transformers``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from pytest_neuralpower import Prediction, predict

HEADERS = ("model", "batch", "ms", "W", "J", "90% interval J", "fallback", "extrapolated", "J each")


class Call(NamedTuple):
    """One model, its inputs by batch size, and what a sample is cut into for the last column."""

    name: str
    factory: Callable[[], torch.nn.Module]
    inputs: Callable[[int], torch.Tensor]
    options: dict[str, Any]
    batches: tuple[int, ...]
    unit: str
    units: int


def tokens(length: int) -> Callable[[int], torch.Tensor]:
    """Token numbers of so many sequences."""
    return lambda batch: torch.zeros(batch, length, dtype=torch.long)


def images(batch: int) -> torch.Tensor:
    """Images of 224 x 224."""
    return torch.empty(batch, 3, 224, 224, dtype=torch.bfloat16)


LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
    tie_word_embeddings=True,
)  # fmt: skip
CALLS = (
    Call("ViT-B/16", lambda: ViTModel(ViTConfig(), add_pooling_layer=False), images, {},
         (1, 32), "image", 1),
    Call("BERT-base, 128 tokens", lambda: BertModel(BertConfig()), tokens(128), {},
         (1, 32), "sequence", 1),
    Call("Llama 1B, prefill of 2048", lambda: LlamaForCausalLM(LLAMA), tokens(2048),
         {"use_cache": False, "logits_to_keep": 1}, (1, 8), "token", 2048),
)  # fmt: skip


def predicted(call: Call, batch: int, platform: str) -> Prediction:
    """The call in bfloat16, from shapes alone."""
    with torch.device("meta"):
        model = call.factory().to(torch.bfloat16).eval()
        return predict(model, call.inputs(batch), platform=platform, **call.options)


def cells(call: Call, batch: int, found: Prediction) -> list[str]:
    """One row of the table."""
    assert found.runtime_ms is not None
    assert found.energy_mj is not None
    assert found.energy_interval_mj is not None
    low, high, _ = found.energy_interval_mj
    each = found.energy_mj / batch / call.units
    return [
        call.name, str(batch), f"{found.runtime_ms:.2f}", f"{found.power_w:.0f}",
        f"{found.energy_mj / 1e3:.3f}", f"{low / 1e3:.3f} to {high / 1e3:.3f}",
        f"{found.share('fallback', 'uncovered'):.0%}", f"{found.share('extrapolated'):.0%}",
        f"{each:.3g} mJ a {call.unit}",
    ]  # fmt: skip


def main(platforms: Sequence[str]) -> None:
    for platform in platforms or ("h200", "h100"):
        rows = [
            cells(call, batch, predicted(call, batch, platform))
            for call in CALLS
            for batch in call.batches
        ]
        print(f"{platform}, bfloat16; shares are of the energy\n")
        print(tabulate(rows, HEADERS, tablefmt="plain", disable_numparse=True), "\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
