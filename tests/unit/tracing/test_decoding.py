"""The layers of every decoding step follow from a handful of traces."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
import torch
from language_models import CONFIGS, language_model, transformers
from torch import nn

from pytest_neuralpower import generate
from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.layers import Engine, Layer, TensorSpec
from pytest_neuralpower.tracing.decoding import MOST_TRACES, LanguageModel, stretches


@pytest.mark.parametrize("engine", ["serving", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_are_those_that_are_traced_one_by_one(name: str, engine: Engine) -> None:
    """Across the length at which windows of 24 tokens fill."""
    model = LanguageModel(language_model(name), 16, batch=3, engine=engine)
    model.prefill()
    found = stretches(lambda cached: model.step(cached).layers, 16, 46, model.bends)
    assert model.steps_traced <= (6 if engine == "serving" else 12)
    for stretch in found:
        for cached in range(stretch.first, stretch.last + 1):
            assert stretch.at(cached) == model.step(cached).layers
    assert [each.first for each in found] == [16, *(each.last + 1 for each in found[:-1])]
    assert found[-1].last == 46


def keys_read(layers: tuple[Layer, ...]) -> list[int]:
    return [layer.inputs[1].shape[-2] for layer in layers if layer.kind == "attention"]


def test_a_step_reads_the_window_of_sliding_layers_and_all_of_the_others() -> None:
    model = LanguageModel(language_model("gemma3"), 16, batch=1)
    assert keys_read(model.step(9).layers) == [10, 10, 10, 10]
    assert keys_read(model.step(400).layers) == [24, 24, 24, 401]
    # A window of the prompt: 24 x 25 / 2 scores grow, each of 76 more queries sees 24 keys.
    attention = [each for each in LanguageModel(model.model, 100, batch=1).prefill()
                 if each.kind == "attention"]  # fmt: skip
    assert [layer.param("kept") for layer in attention] == [4 * (300 + 76 * 24)] * 3 + [None]
    assert attention[-1].param("causal")


def test_an_engine_writes_new_keys_alone_and_transformers_copies_the_cache() -> None:
    def moved(engine: Engine, cached: int) -> int:
        step = LanguageModel(language_model("llama"), 16, batch=2, engine=engine).step(cached)
        return sum(layer.cost.bytes_moved for layer in step if layer.kind == "memory")

    assert moved("serving", 1000) == moved("serving", 10)
    # Keys and values of 2 layers, 2 samples, 2 heads of 16 values, each read and written.
    assert moved("eager", 1000) - moved("eager", 10) == 990 * 2 * (2 * 2 * 2 * 2 * 16 * 2)


def test_an_engine_reads_shared_heads_once_without_a_mask() -> None:
    step = LanguageModel(language_model("llama"), 16, batch=2).step(100, queries=5)
    (attention, *_) = [layer for layer in step if layer.kind == "attention"]
    assert [each.shape for each in attention.inputs] == [(2, 4, 5, 16), *[(2, 2, 105, 16)] * 2]


def test_an_engines_step_multiplies_as_much_as_the_models_own_code() -> None:
    for name in CONFIGS:
        models = [
            LanguageModel(language_model(name), 16, batch=2, engine=each)
            for each in get_args(Engine)
        ]
        for model in models:
            model.prefill()
        engine, eager = (model.step(40) for model in models)
        products = [
            sum(layer.macs for layer in step if layer.kind in ("linear", "matmul", "attention"))
            for step in (engine, eager)
        ]
        assert products[0] == products[1], name


def test_a_model_comes_back_as_it_was() -> None:
    model = language_model("qwen3-moe")
    before = [
        vars(model.config).copy(),
        {kind: kind.forward for kind in map(type, model.modules())},
    ]
    LanguageModel(model, 16, batch=1).step(30)
    assert vars(model.config) == before[0]
    assert {kind: kind.forward for kind in map(type, model.modules())} == before[1]


@pytest.mark.parametrize(("experts", "read"), [(3, 3), (0.5, 4), (100, 8), (1, 1)])
def test_experts_that_a_step_reads_may_be_given(experts: Any, read: float) -> None:
    model = language_model("qwen3-moe")
    step = LanguageModel(model, 16, batch=16, experts=experts).step(20)
    (first, *_) = [layer for layer in step if layer.op == "grouped_mm"]
    matrices = first.inputs[1]
    assert first.cost.bytes_in == first.inputs[0].nbytes + read * matrices.nbytes // 8
    assert [note for note in step.notes if "expert" in note] == [
        f"Given: the tokens of one call choose {'50%' if experts == 0.5 else experts}"
        f"{' of the' if experts == 0.5 else ''} experts, whose weights are read."
    ]
    with pytest.raises(TraceError, match="experts=0: allowed: 'uniform'"):
        step.with_experts(0)


class Recurrent(nn.Module):
    """Its cache is a tensor of its own that attention reads whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)

    def forward(self, ids: torch.Tensor, past: torch.Tensor | None = None) -> Any:
        hidden = self.embed(ids)
        keys = hidden if past is None else torch.cat([past, hidden], 1)
        heads = hidden[:, None], keys[:, None], keys[:, None]
        return nn.functional.scaled_dot_product_attention(*heads)[:, 0], keys


def next_inputs(model: Recurrent, cached: int, batch: int) -> Any:
    return torch.zeros((batch, 1), dtype=torch.int64), torch.empty(batch, cached, 8, device="meta")


def test_a_model_with_a_cache_of_its_own_says_what_a_step_takes() -> None:
    ids = torch.zeros((5, 7), dtype=torch.int64)
    model = LanguageModel(Recurrent(), ids, batch=1, step=next_inputs)
    assert (model.batch, model.tokens) == (5, 7)
    (stretch,) = stretches(lambda cached: model.step(cached).layers, 7, 90, model.bends)
    assert keys_read(stretch.at(50)) == [51]
    assert model.steps_traced == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: LanguageModel(Recurrent(), 7, batch=1),
            "Recurrent is not a model of transformers: ",
        ),
        (
            lambda: LanguageModel(language_model("llama").model, 7, batch=1),
            r"LlamaModel has no head that gives logits: .*AutoModelForCausalLM",
        ),
        (
            lambda: LanguageModel(Recurrent(), 7, batch=1, step=next_inputs),
            "prompt=7 with step=: give the prompt's inputs",
        ),
        (
            lambda: LanguageModel(language_model("llama"), "hello", batch=1),
            "a str is neither a number",
        ),
        (
            lambda: LanguageModel(
                Recurrent(), torch.zeros(5, 7).long(), batch=1, step=lambda *_: 7
            ).step(7),
            "a int is nothing that step= may return",
        ),
        (
            lambda: LanguageModel(language_model("llama").model, 7, batch=1),
            "has no head that gives logits",
        ),
        (
            lambda: LanguageModel(language_model("llama"), torch.zeros((0, 5)).long(), batch=1),
            r"\(0, 5\), have no token",
        ),
    ],
)
def test_one_line_says_what_to_pass(make: Any, says: str) -> None:
    with pytest.raises(TraceError, match=says) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_positional_inputs_of_a_prompt_are_those_that_forward_names() -> None:
    ids, mask = torch.zeros((2, 16), dtype=torch.int64), torch.ones((2, 16), dtype=torch.int64)

    def layers(prompt: Any) -> list[Layer]:
        model = LanguageModel(language_model("llama"), prompt, batch=1, engine="eager")
        return [layer for call in (model.prefill(), model.step(20)) for layer in call]

    named = layers({"input_ids": ids, "attention_mask": mask})
    assert layers((ids, mask)) == named
    assert layers(ids) != named
    embedded = LanguageModel(
        language_model("llama"), torch.empty(2, 16, 64, dtype=torch.bfloat16), batch=1
    ).prefill()
    assert "embedding" not in {layer.kind for layer in embedded}


def test_one_line_tells_that_transformers_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", None)
    monkeypatch.delitem(
        sys.modules, "pytest_neuralpower.tracing.transformers_models", raising=False
    )
    with pytest.raises(
        TraceError, match=r"transformers 5\S+ is too old \(.*moe.*\): `pip"
    ) as raised:
        LanguageModel(language_model("llama"), 16, batch=1)
    assert "\n" not in str(raised.value)


def test_sizes_that_bend_where_nobody_said_are_traced_more_often() -> None:
    calls: list[int] = []

    def layers(cached: int) -> tuple[Layer, ...]:
        calls.append(cached)
        tensor = torch.empty(min(cached, 37) * 2 + max(cached - 61, 0), device="meta")
        step = LanguageModel(Recurrent(), tensor.new_zeros((1, 1), device="cpu").long(), batch=1,
                        step=next_inputs).step(len(tensor))  # fmt: skip
        return step.layers

    found = stretches(layers, 0, 100)
    assert len(calls) < 60
    for stretch in found:
        for cached in range(stretch.first, stretch.last + 1):
            assert stretch.at(cached) == layers(cached)


def test_an_engine_joins_projections_and_adds_residuals_in_norms() -> None:
    step = LanguageModel(language_model("llama"), 16, batch=2).step(30)
    block = [layer for layer in step if layer.path.startswith("model.layers.1")]
    assert [layer.op for layer in block] == [
        "fused_add_rms_norm", "linear", "rotary_embedding", "cache_write",
        "scaled_dot_product_attention", "linear", "fused_add_rms_norm", "linear", "silu_and_mul",
        "linear",
    ]  # fmt: skip
    norm, projection = block[:2]
    assert projection.path == "model.layers.1.self_attn.qkv_proj"
    assert projection.weights[0].shape == (64 + 2 * 32, 64)
    assert [each.shape for each in (*norm.inputs, *norm.outputs)] == [(2, 1, 64)] * 4
    # Edges lead where they did: rotation reads the joined projection, the next norm both adds.
    place = step.layers.index(projection)
    assert step.reads[place + 1][0] == place
    assert all(max(reads, default=-1) < number for number, reads in enumerate(step.reads))


def test_sizes_that_jump_everywhere_take_a_bounded_number_of_traces() -> None:
    calls: list[int] = []

    def layers(cached: int) -> tuple[Layer, ...]:
        calls.append(cached)
        shape = (16 * (cached // 16 + 1), 4)
        spec = TensorSpec(shape, "float32")
        return (Layer("memory", "copy", "", (spec,), (), (spec,), "float32"),)

    found = stretches(layers, 0, 9999)
    assert len(calls) <= MOST_TRACES + 2
    assert [each.first for each in found[1:]] == [each.last + 1 for each in found[:-1]]
    assert (found[0].first, found[-1].last) == (0, 9999)
    assert not all(each.exact for each in found)
    for stretch in found:  # never less than it is
        (layer,), (asked,) = stretch.at(stretch.first), layers(stretch.first)
        assert asked.outputs[0].shape[0] <= layer.outputs[0].shape[0]


def test_keys_grow_beside_states_and_where_no_paged_form_is_known() -> None:
    hybrid = LanguageModel(language_model("falcon-h1"), 40, batch=2)
    hybrid.prefill()
    assert [keys_read(hybrid.step(cached).layers) for cached in (40, 900)] == [[41] * 2, [901] * 2]
    config = transformers.DeepseekV4Config(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=128
    )
    with torch.device("meta"):
        compressing = LanguageModel(transformers.DeepseekV4ForCausalLM(config).eval(), 40, batch=2)
    compressing.prefill()
    short, long = (max(keys_read(compressing.step(cached).layers)) for cached in (100, 900))
    assert short + 190 < long < 901  # one of four is kept


def test_a_mode_that_models_generate_in_is_taken_and_given_back() -> None:
    model = language_model("llama", attention_dropout=0.5)
    options: Any = {"prompt": 8, "new_tokens": 4, "platform": "h200", "engine": "eager"}
    before = generate(model, **options)
    model.train()
    model.lm_head.eval()
    trained = generate(torch.nn.DataParallel(model), **options)
    assert trained.energy_mj == before.energy_mj
    assert [name for name, each in model.named_modules() if not each.training] == ["lm_head"]


def test_threads_generate_at_once_and_leave_classes_as_they_were() -> None:
    forward = type(language_model("llama").model.norm).forward

    def energy(model: Any) -> float | None:
        return generate(model, prompt=8, new_tokens=4, platform="h200").energy_mj

    models = [language_model("llama") for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(energy, models))) == 1
    assert type(models[0].model.norm).forward is forward
