"""Print what ten language models cost to serve on h100 and h200, and published figures beside ours.

python experiments/serving_table.py [PLATFORM ...]

Models are built from their published hyper-parameters, without weights; nothing is downloaded.
The first table has the prompt's call of 2,048 tokens and one decoding step at 8,192 tokens of
context, at batch 1, 16 and 64: ms, J per token, the kinds' shares of the energy, and what stands
behind each share (p: measured rows; e: sizes that were not measured; i: kinds that were not; u: no
formula). One device is assumed to hold the model; a 70B model in bfloat16 needs more.

The second table judges `h100` by runs of the ML.ENERGY leaderboard v3 (commit 0ea52b6 of
github.com/ml-energy/leaderboard, vLLM 0.11.1, one H100, bfloat16): median inter-token latency and
energy per output token of a saturated server. Its requests are of different lengths: a step is
priced at the mean context, E[L^2] / (2 E[L]) of the published output lengths (about 0.9 of their
mean for chats, 0.6 for long reasoning) and a prompt of 150 tokens; energy is a sample's share of
the step, and of its prompt's call a share for each token it yields. That vLLM sorts all logits to
draw by top-k and top-p, at 0.21 ns each (0.2145 in pull request 32234 of vLLM), where the platform
has a newer sampler. None of these runs tunes a constant, but they were looked at when the loss and
the rows were chosen that power is learnt by (calibration/h100/recipe.yaml).

The third table has runs that chose nothing: Qwen3 8B of github.com/tgarg01/silybench-data (commit
93e4887, vLLM 0.30.0, one H100 SXM, bfloat16, every request of the given lengths): median
inter-token latency, and mean power over output tokens a second. Needs the package ``transformers``.
"""

from __future__ import annotations

import math
import statistics
import sys
from typing import Any, NamedTuple

import torch
import transformers
from msgspec.structs import replace
from tabulate import tabulate

from pytest_neuralpower import Generation, generate, load_platform
from pytest_neuralpower.platform.prediction import TokenSampler

transformers.logging.set_verbosity_error()

LLAMA = {"num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128}
QWEN = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
MODELS = {
    "Llama 3.2 1B": transformers.LlamaConfig(
        **{**LLAMA, "head_dim": 64}, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=16, num_attention_heads=32, tie_word_embeddings=True,
    ),
    "Mistral 7B v0.3": transformers.MistralConfig(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, sliding_window=None,
    ),
    "Llama 3.1 8B": transformers.LlamaConfig(
        **LLAMA, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32,
    ),
    "Qwen3 8B": transformers.Qwen3Config(
        **QWEN, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32,
    ),
    "Gemma 3 12B": transformers.Gemma3TextConfig(
        vocab_size=262208, hidden_size=3840, intermediate_size=15360, num_hidden_layers=48,
        num_attention_heads=16, num_key_value_heads=8, head_dim=256, sliding_window=1024,
    ),
    "Phi-4 14B": transformers.Phi3Config(
        vocab_size=100352, hidden_size=5120, intermediate_size=17920, num_hidden_layers=40,
        num_attention_heads=40, num_key_value_heads=10, pad_token_id=0,
    ),
    "Qwen3 32B": transformers.Qwen3Config(
        **QWEN, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64,
        num_attention_heads=64,
    ),
    "Qwen3 30B-A3B": transformers.Qwen3MoeConfig(
        **{**QWEN, "num_key_value_heads": 4}, hidden_size=2048, num_hidden_layers=48,
        num_attention_heads=32, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
    "Mixtral 8x7B": transformers.MixtralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, sliding_window=None,
    ),
    "Llama 3.1 70B": transformers.LlamaConfig(
        **LLAMA, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64,
    ),
}  # fmt: skip
#: Judged, too, but not of the ten.
QWEN_14B = transformers.Qwen3Config(
    **QWEN, hidden_size=5120, intermediate_size=17408, num_hidden_layers=40, num_attention_heads=40
)

LETTERS = {"extrapolated": "e", "inferred": "i", "uncovered": "u"}


class Published(NamedTuple):
    """Runs of one model: mean context of a step, mean output, and by batch ms and J a token."""

    model: str
    context: int
    output: int
    runs: dict[int, tuple[float, float]]


PUBLISHED = (
    Published("Llama 3.1 8B", 500, 395, {
        8: (7.32, 0.455), 16: (7.91, 0.263), 32: (8.91, 0.165), 64: (11.50, 0.119)}),
    Published("Qwen3 8B", 730, 647, {
        8: (8.20, 0.444), 16: (8.90, 0.259), 32: (10.57, 0.163), 64: (13.95, 0.119)}),
    Published("Qwen3 8B", 4900, 7900, {
        8: (9.70, 0.604), 16: (11.91, 0.403), 32: (16.87, 0.317), 63: (26.64, 0.267)}),
    Published("Qwen3 14B", 710, 618, {
        8: (12.54, 0.706), 16: (13.34, 0.398), 32: (15.01, 0.244), 64: (18.94, 0.167)}),
    Published("Qwen3 14B", 4400, 7000, {
        8: (14.42, 0.874), 16: (17.34, 0.535), 32: (21.55, 0.354), 59: (28.07, 0.280)}),
    Published("Gemma 3 12B", 800, 722, {
        8: (13.10, 0.702), 16: (14.53, 0.418), 32: (17.49, 0.271), 64: (22.89, 0.201)}),
    Published("Qwen3 30B-A3B", 980, 922, {
        8: (12.85, 0.653), 16: (17.55, 0.487), 32: (22.57, 0.336), 64: (28.94, 0.222)}),
)  # fmt: skip

#: Time per logit of a sampler that sorts them all, ns.
SORTED = TokenSampler(logit_ns=0.21)


class Load(NamedTuple):
    """Runs of one prompt and output length: by batch ms, W and output tokens a second."""

    prompt: int
    output: int
    runs: dict[int, tuple[float, float, float]]


LOADS = (
    Load(128, 128, {
        1: (6.83, 423.0, 145.3), 4: (6.92, 423.3, 548.2), 16: (7.14, 436.7, 2156.2),
        32: (7.40, 491.5, 4030.3), 64: (8.15, 548.5, 6957.7)}),
    Load(128, 1024, {
        1: (6.86, 429.0, 145.7), 4: (7.01, 425.2, 547.9), 16: (7.53, 465.5, 2116.8),
        32: (8.11, 526.2, 3910.2), 64: (9.49, 614.4, 6597.0)}),
    Load(2048, 2048, {
        1: (7.00, 428.6, 142.4), 4: (7.53, 458.5, 506.4), 16: (9.46, 504.1, 1625.1),
        32: (11.87, 573.5, 2528.5), 64: (17.05, 655.7, 3462.8)}),
)  # fmt: skip


def built(name: str) -> Any:
    """The model without weights."""
    config = QWEN_14B if name == "Qwen3 14B" else MODELS[name]
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def step(model: Any, context: int, batch: int, platform: Any) -> Any:
    """One decoding step after so many tokens."""
    found = generate(model, prompt=context, new_tokens=2, batch=batch, platform=platform)
    assert found.decode is not None
    return found.decode.last


def shares(items: Any, total: float, tier: str) -> str:
    """``linear 70 (p 66 e 4), attention 20 (p)``, in percent."""
    kinds: dict[str, dict[str, float]] = {}
    for item in items:
        behind = next((LETTERS[flag] for flag in item.flags), tier[0])
        kind = kinds.setdefault(item.layer.kind, {})
        kind[behind] = kind.get(behind, 0.0) + 100 * item.cost / total
    texts = []
    for name, kind in sorted(kinds.items(), key=lambda pair: -sum(pair[1].values())):
        if sum(kind.values()) < 1:
            continue
        ordered = sorted(kind.items(), key=lambda pair: -pair[1])
        parts = " ".join(
            f"{letter} {share:.0f}" if len(kind) > 1 else letter for letter, share in ordered
        )
        texts.append(f"{name} {sum(kind.values()):.0f} ({parts})")
    return ", ".join(texts)


def table(platform: str) -> None:
    """The ten models on one platform."""
    rows = []
    for name in MODELS:
        model = built(name)
        for batch in (1, 16, 64):
            prompt: Generation = generate(
                model, prompt=2048, new_tokens=1, batch=batch, platform=platform
            )
            for label, found, tokens in (
                ("prefill 2,048", prompt.prefill, batch * 2048),
                ("decode at 8,192", step(model, 8191, batch, platform), batch),
            ):
                rows.append((
                    name, batch, label, f"{found.runtime_ms:.2f}",
                    f"{found.energy_mj / tokens / 1e3:.4f}",
                    shares(found.layers, found.cost, prompt.tier),
                ))  # fmt: skip
    headers = ("model", "batch", "call", "ms", "J/token", "share of the energy, %")
    print(f"{platform}\n")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True), "\n")


def judge(name: str) -> None:
    """Published figures of mixed requests beside ours."""
    rows, dense = [], []
    platform = replace(load_platform(name), sampler=SORTED)
    for model_name, context, output, runs in PUBLISHED:
        model = built(model_name)
        prompt = generate(model, prompt=150, new_tokens=1, platform=platform)
        for batch, (latency, energy) in runs.items():
            found = step(model, context, batch, platform)
            own = found.energy_mj / batch / 1e3 + prompt.energy_mj / output / 1e3
            ours = found.runtime_ms, own
            rows.append((model_name, context, batch, *beside(ours, (latency, energy))))
            if model_name != "Qwen3 30B-A3B":
                dense.append(errors(ours, (latency, energy)))
    show(("model", "context", "batch"), rows, f"{name}, beside the ML.ENERGY leaderboard v3")
    summarise("dense models", dense)


def judge_loads(name: str) -> None:
    """Published figures of requests of one length beside ours."""
    rows, found = [], []
    model = built("Qwen3 8B")
    for prompt, output, runs in LOADS:
        for batch, (latency, watts, rate) in runs.items():
            each = generate(model, prompt=prompt, new_tokens=output, batch=batch, platform=name)
            assert each.itl_ms is not None
            assert each.energy_mj_per_token is not None
            ours = each.itl_ms.mean, each.energy_mj_per_token / 1e3
            rows.append((prompt, output, batch, *beside(ours, (latency, watts / rate))))
            found.append(errors(ours, (latency, watts / rate)))
    show(("prompt", "output", "batch"), rows, f"{name}, Qwen3 8B, beside silybench")
    summarise("Qwen3 8B", found)


Pair = tuple[float, float]


def errors(ours: Pair, published: Pair) -> Pair:
    """Of latency and energy, relative."""
    return ours[0] / published[0] - 1, ours[1] / published[1] - 1


def beside(ours: Pair, published: Pair) -> tuple[str, ...]:
    """Cells of latency and energy: published, ours, error."""
    latency, energy = errors(ours, published)
    return (
        f"{published[0]:.2f}", f"{ours[0]:.2f}", f"{latency:+.0%}",
        f"{published[1]:.3f}", f"{ours[1]:.3f}", f"{energy:+.0%}",
    )  # fmt: skip


def show(names: tuple[str, ...], rows: list[Any], title: str) -> None:
    """A table of published figures and ours."""
    headers = (*names, "ITL ms", "ours", "", "J/token", "ours", "")
    print(f"{title}\n")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True), "\n")


def summarise(what: str, found: list[Pair]) -> None:
    """Mean and largest errors, and which way they go."""
    for number, (quantity, reach) in enumerate((("inter-token latency", 0.15), ("J/token", 0.2))):
        sizes = [abs(each[number]) for each in found]
        ratio = math.exp(statistics.mean(math.log1p(each[number]) for each in found))
        print(
            f"{what}, {quantity}: MAPE {statistics.mean(sizes):.1%}, largest {max(sizes):.1%}, "
            f"{sum(size > reach for size in sizes)} of {len(sizes)} beyond {reach:.0%}, "
            f"geometric mean of ours / published {ratio:.2f}"
        )
    print()


if __name__ == "__main__":
    for each in sys.argv[1:] or ["h100", "h200"]:
        table(each)
    judge("h100")
    judge_loads("h100")
