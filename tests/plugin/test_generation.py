"""Guarded language models: budgets per token, baselines of their calls."""

from __future__ import annotations

import pytest
from language_models import language_model

from pytest_neuralpower import generate

MODELS = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

def llama(layers=2, width=64):
    config = LlamaConfig(
        vocab_size=128, hidden_size=width, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
"""


@pytest.fixture(scope="module", autouse=True)
def transformers_loaded() -> None:
    """Before an inner run, which would forget it afterwards."""
    generate(language_model("llama"), prompt=4, new_tokens=2, platform="h200")


@pytest.fixture
def language(repo, pytester):
    """``language(body)`` writes a test of a language model; ``language.run`` runs it."""
    (pytester.path / "language.py").write_text(MODELS)

    def write(test: str) -> None:
        repo.write(f"import pytest, torch\nfrom language import llama\n{test}")

    return write


def test_budgets_per_token_are_of_all_new_tokens(repo, language):
    language("""
GENERATION = dict(prompt=16, new_tokens=11, batch=3)

@pytest.mark.energy_budget(mj=1e6)
def test_whole(neuralpower):
    found = neuralpower.generate(neuralpower.build(llama), **GENERATION)
    assert found.tokens == 33
    assert found.energy_mj_per_token == found.energy_mj / 33

@pytest.mark.energy_budget(uj=1, per="token")
def test_energy(neuralpower):
    neuralpower.generate(neuralpower.build(llama), **GENERATION)

@pytest.mark.runtime_budget(us=0.1, per="next_token")
@pytest.mark.runtime_budget(s=1, per="first_token")
def test_latency(neuralpower):
    neuralpower.generate(neuralpower.build(llama), **GENERATION)
""")
    result = repo.run("--np-platform=h200")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "energy budget exceeded: LlamaForCausalLM on h200",
            "  budget     1.00 µJ per token",
            "  predicted  * µJ per token, *",
            "  11 tokens for each of 3 samples after 16: *",
            "runtime budget exceeded: LlamaForCausalLM on h200",
            "  budget     0.1 µs per next token",
        ]
    )
    assert "0.1 µs per first token" not in result.stdout.str()
    for part in ("", ", prompt of 16", ", step after 25"):
        assert f"    LlamaForCausalLM{part}  " in result.stdout.str()


def test_a_call_has_the_tokens_of_its_ids(repo, language):
    language("""
@pytest.mark.energy_budget(mj=1e6, per="token")
def test_ids(neuralpower):
    model = neuralpower.build(llama)
    call = neuralpower.predict(model, torch.zeros(3, 16, dtype=torch.int64))
    assert call.tokens == 48

@pytest.mark.energy_budget(mj=1e6, per="token")
def test_images(neuralpower):
    neuralpower.predict(torch.nn.Linear(4, 4), torch.zeros(3, 4))

@pytest.mark.energy_budget(mj=1e6, per="token", tokens=12)
def test_said(neuralpower):
    neuralpower.predict(torch.nn.Linear(4, 4), torch.zeros(3, 4))

@pytest.mark.runtime_budget(ms=1, per="first_token")
def test_no_generation(neuralpower):
    neuralpower.predict(torch.nn.Linear(4, 4), torch.zeros(3, 4))

@pytest.mark.energy_budget(mj=1, per="first_token")
def test_no_energy_of_a_latency(neuralpower):
    pass
""")
    result = repo.run("--np-platform=h200")
    result.assert_outcomes(passed=2, failed=2, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*the call has 0 tokens, or inputs that do not tell how many; predict at least one, or "
            "say tokens=N in the marker",
            "*per='first_token' is of a generation: call neuralpower.generate(*",
            "*energy_budget: per='first_token'; allowed: 'call', 'sample', 'token'",
        ]
    )


def test_baselines_hold_the_prompts_call_and_the_last_step(repo, language, pytester):
    test = """
@pytest.mark.regression(max_percent=1)
def test_serving(neuralpower):
    neuralpower.generate(neuralpower.build(llama, width={}), prompt=16, new_tokens=11)
"""
    language(test.format(64))
    repo.run("--np-platform=h200", "--np-update-baseline").assert_outcomes(passed=1)
    stored = sorted(path.read_text() for path in pytester.path.rglob("*.yaml"))
    assert len(stored) == 2
    assert 'model: "LlamaForCausalLM, prompt of 16"' in stored[0]
    assert 'model: "LlamaForCausalLM, step after 25"' in stored[1]
    repo.run("--np-platform=h200").assert_outcomes(passed=1)
    language(test.format(512))
    result = repo.run("--np-platform=h200")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*step after 25*"])


def test_a_budget_file_generates(repo, language, pytester):
    file = pytester.path / "serving.budget.yaml"
    file.write_text("""
models:
  fits:
    model: language.py:llama
    generate: {prompt: 16, new_tokens: 11, batch: 2, draft: language.py:llama,
               draft_arguments: {layers: 1}, acceptance: 0.5}
    budgets: {energy: {mj: 1000000, per: token}, runtime: {s: 1, per: next_token}}
  breaks:
    model: language.py:llama
    generate: {prompt: 16, new_tokens: 11}
    budgets: {energy: {uj: 1, per: token}}
""")
    result = repo.run("--np-platform=h200", str(file))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["  budget     1.00 µJ per token"])
    file.write_text("""
models:
  wrong:
    model: language.py:llama
    generate: {prompt: 0, new_tokens: 11}
    budgets: {energy: {mj: 1}}
  both:
    model: language.py:llama
    inputs: [[1, 16]]
    generate: {prompt: 4, new_tokens: 11}
    budgets: {energy: {mj: 1}}
  mistyped:
    model: language.py:llama
    generate:
      prompt: 4
      new_token: 11
      engine: vllm
    budgets: {energy: {mj: 1}}
  bare:
    model: language.py:llama
    generate: {batch: 4}
    budgets: {energy: {mj: 1}}
""")
    result = repo.run("--np-platform=h200", str(file))
    result.stdout.fnmatch_lines(
        [
            "serving.budget.yaml:5: generate: prompt: 0 must be a whole number from 1 on",
            "serving.budget.yaml:10: both has inputs: and generate:; give one",
            "serving.budget.yaml:16: unknown key 'new_token' of generate, did you mean new_to*",
            "serving.budget.yaml:17: generate: engine: 'vllm' must be serving or eager",
            "serving.budget.yaml:21: generate needs prompt:, such as {*}",
            "serving.budget.yaml:21: generate needs new_tokens:, such as {*}",
        ]
    )
