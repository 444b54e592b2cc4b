"""Generating text costs what the prompt's call and all steps do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from language_models import language_model
from msgspec.structs import replace

from pytest_neuralpower import generate, load_platform, predict
from pytest_neuralpower.errors import OptionError, PlatformError
from pytest_neuralpower.platform.prediction import UNTRUSTED, TokenSampler
from pytest_neuralpower.platform.serving import expected_tokens
from pytest_neuralpower.tracing.decoding import LanguageModel

if TYPE_CHECKING:
    from pytest_neuralpower.platform.generation import Generation


def generation(name: str = "llama", **changes: Any) -> Generation:
    options: dict[str, Any] = {"prompt": 16, "new_tokens": 21, "batch": 2, "platform": "h200"}
    return generate(language_model(name), **{**options, **changes})


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-moe"])
def test_each_step_is_priced_as_if_it_were_predicted_alone(name: str) -> None:
    found, platform = generation(name), load_platform("h200")
    model = LanguageModel(language_model(name), 16, batch=2)
    prompt = platform.predict(model.prefill())
    steps = [platform.predict(model.step(cached)) for cached in range(16, 36)]
    assert found.decode is not None
    assert found.decode.cached == tuple(range(16, 36))
    assert found.decode.runtime_ms == pytest.approx([each.runtime_ms for each in steps], rel=1e-12)
    assert found.decode.energy_mj == pytest.approx([each.energy_mj for each in steps], rel=1e-12)
    calls = [prompt, *steps]
    assert found.ttft_ms == prompt.runtime_ms
    assert found.runtime_ms == pytest.approx(sum(each.runtime_ms or 0 for each in calls))
    assert found.energy_mj == pytest.approx(sum(each.energy_mj or 0 for each in calls))
    assert found.share(*UNTRUSTED) == pytest.approx(
        sum(each.share(*UNTRUSTED) * each.cost for each in calls) / sum(x.cost for x in calls)
    )
    assert math.fsum(math.fsum(each.values()) for each in found.shares().values()) == (
        pytest.approx(1)
    )
    assert "linear" in found.shares()


def test_the_interval_is_that_of_one_call_with_all_layers() -> None:
    found, platform = generation(), load_platform("h200")
    model = LanguageModel(language_model("llama"), 16, batch=2)
    traces = [model.prefill(), *(model.step(cached) for cached in range(16, 36))]
    whole = platform.predict([layer for each in traces for layer in each])
    for name in ("runtime_interval_ms", "energy_interval_mj", "power_interval_w"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_steps_that_wait_take_what_each_kind_s_launches_take() -> None:
    found, platform = generation(platform="titanrtx"), load_platform("titanrtx")
    model = LanguageModel(language_model("llama"), 16, batch=2)
    steps = [platform.predict(model.step(cached)) for cached in range(16, 36)]
    assert all(each.host_ms == each.runtime_ms for each in steps)
    assert found.decode is not None
    assert found.decode.runtime_ms == pytest.approx([each.runtime_ms for each in steps], rel=1e-12)
    assert found.decode.energy_mj == pytest.approx([each.energy_mj for each in steps], rel=1e-12)


def test_figures_are_per_new_token_of_the_whole_batch() -> None:
    found = generation()
    assert found.tokens == 42
    assert found.energy_mj is not None
    assert found.runtime_ms is not None
    assert found.energy_mj_per_token == found.energy_mj / 42
    assert found.tokens_per_second == 42e3 / found.runtime_ms
    assert found.power_w == found.energy_mj / found.runtime_ms
    assert found.decode is not None
    assert found.itl_ms is not None
    assert found.itl_ms.mean == pytest.approx(sum(found.decode.runtime_ms) / 20)
    assert (found.itl_ms.first, found.itl_ms.last) == (
        found.decode.runtime_ms[0], found.decode.runtime_ms[-1],
    )  # fmt: skip


def test_the_prompts_call_yields_the_first_token() -> None:
    found = generation(new_tokens=1)
    assert found.decode is None
    assert found.itl_ms is None
    assert found.runtime_ms == found.ttft_ms


def test_a_draft_proposes_and_the_model_verifies_all_at_once() -> None:
    draft = language_model("llama", num_hidden_layers=1)
    found = generation(draft=draft, draft_tokens=3, acceptance=0.5)
    per_round = 1 + 0.5 + 0.25 + 0.125
    assert found.draft is not None
    assert found.draft.per_round == pytest.approx(per_round)
    assert found.decode is not None
    assert found.decode.cached == tuple(
        16 + math.floor(number * per_round) for number in range(math.ceil(20 / per_round))
    )
    platform = load_platform("h200")
    target, second = (LanguageModel(each, 16, batch=2) for each in (language_model("llama"), draft))
    calls = [target.step(16, 4), *(second.step(cached) for cached in (16, 17, 18))]
    first = sum(platform.predict(each).runtime_ms or 0 for each in calls)
    assert found.decode.runtime_ms[0] == pytest.approx(first)
    assert found.itl_ms is not None
    assert found.itl_ms.first == pytest.approx(first / per_round)
    prompts = [platform.predict(each.prefill()).runtime_ms or 0 for each in (target, second)]
    assert found.ttft_ms == pytest.approx(sum(prompts))


@pytest.mark.parametrize(("acceptance", "tokens"), [(0, 1), (1, 5), (0.8, 3.3616)])
def test_tokens_of_a_round(acceptance: float, tokens: float) -> None:
    assert expected_tokens(4, acceptance) == pytest.approx(tokens)


def test_a_prompt_may_be_inputs() -> None:
    import torch

    ids = torch.zeros((2, 16), dtype=torch.int64)
    assert generation(prompt={"input_ids": ids}, batch=1) == generation()
    assert generation(prompt=ids, batch=1) == generation()


def test_every_step_is_priced_at_its_own_length() -> None:
    found = generation(prompt=2000, new_tokens=3000)
    assert found.decode is not None
    assert len(found.decode) == 2999
    assert found.decode.traces == 3
    keys = [each.layer for each in found.decode.last.layers if each.layer.kind == "attention"]
    assert [layer.inputs[1].shape[2] for layer in keys] == [4999, 4999]


def test_what_a_platform_does_not_know_has_no_figure() -> None:
    time_alone = generation(platform=replace(load_platform("h100"), power=None))
    assert time_alone.runtime_ms
    assert (time_alone.energy_mj, time_alone.energy_mj_per_token, time_alone.power_w) == (None,) * 3
    assert " J" not in time_alone.text()
    energy_alone = generation(platform="eyeriss")
    assert energy_alone.energy_mj
    assert (energy_alone.runtime_ms, energy_alone.itl_ms, energy_alone.ttft_ms) == (None,) * 3
    assert " ms" not in energy_alone.text()


def test_it_says_what_it_is() -> None:
    text = str(generation("qwen3-moe", new_tokens=11))
    assert text.startswith("Qwen3MoeForCausalLM on h200, batch 2: 16 prompt + 11 new tokens\n")
    assert "decode, 10 steps" in text
    assert "inter-token latency" in text
    assert "all equally likely" in text
    assert repr(generation()).startswith("<Generation of LlamaForCausalLM on h200, batch 2: ")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"platform": None}, PlatformError, "generate() needs platform="),
        ({"new_tokens": 0}, OptionError, "new_tokens=0 must be a whole number from 1"),
        ({"prompt": 0}, OptionError, "prompt=0 must be"),
        ({"acceptance": 1.5}, OptionError, "acceptance=1.5 must be a probability"),
        ({"engine": "vllm"}, OptionError, "engine='vllm': allowed: serving, eager"),
        ({"quantization": "int4"}, OptionError, "quantization='int4': allowed: none, fp8"),
        ({"engine": "eager", "kv_cache_dtype": "fp8"}, OptionError, "needs engine='serving'"),
    ],
)
def test_one_line_refuses(changes: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        generation(**changes)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_an_engine_quantises_all_products_but_the_head_and_routers(name: str) -> None:
    found = generation(name, quantization="fp8")
    assert found.decode is not None
    for call in (found.prefill, found.decode.last):
        layers = [each.layer for each in call.layers if each.layer.op in ("linear", "grouped_mm")]
        kept = [layer.path for layer in layers if layer.dtype != "float8_e4m3fn"]
        assert kept[-1] == "lm_head"
        assert {path.rpartition(".")[2] for path in kept[:-1]} <= {"gate"}
        eight = [layer for layer in layers if layer.dtype == "float8_e4m3fn"]
        assert len(eight) > len(kept)
        assert {layer.outputs[0].dtype for layer in eight} == {"bfloat16"}


def test_steps_read_a_cache_of_half_the_bytes_and_a_prompt_makes_its_own() -> None:
    plain, eight = (generation(kv_cache_dtype=dtype) for dtype in ("auto", "fp8"))
    assert plain.decode is not None
    assert eight.decode is not None
    assert plain.ttft_ms == pytest.approx(eight.ttft_ms, rel=0.01)
    before, after = (
        [each.layer for each in found.decode.last.layers if each.layer.kind == "attention"]
        for found in (plain, eight)
        if found.decode is not None
    )
    for one, other in zip(before, after, strict=True):
        assert one.inputs[0] == other.inputs[0]
        assert [2 * each.nbytes for each in other.inputs[1:]] == [x.nbytes for x in one.inputs[1:]]


def test_a_large_model_takes_no_memory_and_one_predict_is_the_same_step() -> None:
    model = language_model("llama", hidden_size=8192, intermediate_size=28672,
                           num_hidden_layers=80, num_attention_heads=64)  # fmt: skip
    found = generate(model, prompt=2048, new_tokens=2, platform="h200")
    assert all(each.is_meta for each in model.parameters())
    assert found.prefill.runtime_ms is not None
    assert found.prefill.runtime_ms > 100
    import torch

    eager = predict(
        model, torch.zeros((1, 2048), dtype=torch.int64), logits_to_keep=1, platform="h200"
    )
    assert eager.runtime_ms is not None
    assert 1 < eager.runtime_ms / found.prefill.runtime_ms < 2


def test_an_engine_draws_tokens_by_what_the_platform_knows_of_it() -> None:
    platform = replace(load_platform("h200"), sampler=None)
    known = replace(platform, sampler=TokenSampler(logit_ns=1000.0))
    before, after = generation(platform=platform), generation(platform=known)
    assert before.decode is not None
    assert after.decode is not None
    drawn, (flagged,) = [
        [item for item in found.decode.last.layers if item.layer.op == "sample_top_p"]
        for found in (before, after)
        if found.decode is not None
    ]
    assert flagged.runtime_ms == pytest.approx(2 * 128 * 1e-3)
    assert (drawn[0].flags, flagged.flags) == (("uncovered",), ("inferred",))
    longer = after.decode.runtime_ms[0] - before.decode.runtime_ms[0]
    assert longer == pytest.approx((flagged.runtime_ms or 0) - (drawn[0].runtime_ms or 0))
    greedy = generation(platform=known, sampling="greedy")
    assert greedy.decode is not None
    assert [item.layer.op for item in greedy.decode.last.layers][-2:] == ["linear", "argmax"]
