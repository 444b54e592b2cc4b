"""Small language models of transformers, from configurations, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers: Any = pytest.importorskip("transformers")

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}

CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**_SIZES),
    "qwen2": transformers.Qwen2Config(**_SIZES),
    "qwen3": transformers.Qwen3Config(**_SIZES, head_dim=16),
    "mistral": transformers.MistralConfig(**_SIZES, sliding_window=24),
    "gemma2": transformers.Gemma2Config(**_SIZES, head_dim=16, sliding_window=24),
    "gemma3": transformers.Gemma3TextConfig(
        **{**_SIZES, "num_hidden_layers": 4},
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention",
                     "full_attention"],
    ),
    "qwen3-moe": transformers.Qwen3MoeConfig(**_SIZES, **_EXPERTS, head_dim=16),
    "mixtral": transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "phi3": transformers.Phi3Config(**_SIZES),
    "falcon": transformers.FalconConfig(**_SIZES, alibi=False, new_decoder_architecture=True),
    "falcon-h1": transformers.FalconH1Config(
        **_SIZES, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1
    ),
    "gpt2": transformers.GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4),
}  # fmt: skip


def language_model(name: str, **changes: Any) -> Any:
    """A model of one of :data:`CONFIGS`, without weights."""
    config = CONFIGS[name]
    if changes:
        config = type(config)(**{**config.to_dict(), **changes})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
