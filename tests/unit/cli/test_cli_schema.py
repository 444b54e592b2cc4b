"""``neuralpower schema``: real files of ours keep it, broken ones do not, and ``docs/`` has it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pytest_neuralpower.cli.schema import FILES

ROOT = Path(__file__).parents[3]
PLATFORM = json.loads((ROOT / "pytest_neuralpower/platforms/titanx.json").read_text("utf-8"))
BASELINE = yaml.safe_load(
    next((ROOT / "budgets/baselines/titanx").glob("*.yaml")).read_text("utf-8")
)
BUDGETS = {"models": {"net": {"model": "nets.py:net", "inputs": [[1, 3]], "budgets": {}}}}


def printed(neuralpower, name: str) -> dict:
    code, out, _ = neuralpower("schema", name)
    assert code == 0
    return json.loads(out)


@pytest.mark.parametrize("name", FILES)
def test_docs_have_what_is_printed(neuralpower, name) -> None:
    shipped = json.loads((ROOT / f"docs/schemas/{name}.json").read_text("utf-8"))
    assert printed(neuralpower, name) == shipped
    jsonschema.Draft202012Validator.check_schema(shipped)


@pytest.mark.parametrize(
    ("name", "content", "broken"),
    [
        ("platform", PLATFORM, {"dtype": 32}),
        ("baseline", BASELINE, {"batch": "one"}),
        ("budget-file", BUDGETS, {"modles": {}}),
    ],
    ids=["platform", "baseline", "budget-file"],
)
def test_real_files_keep_it_and_a_broken_one_does_not(neuralpower, name, content, broken) -> None:
    validator = jsonschema.Draft202012Validator(printed(neuralpower, name))
    assert validator.is_valid(content), next(validator.iter_errors(content)).message
    assert not validator.is_valid({**content, **broken})


def test_an_unknown_file_is_refused_with_those_there_are(neuralpower) -> None:
    code, _, err = neuralpower("schema", "recipes")
    assert code == 2
    assert "schema recipes: there is none; give one of budget-file, baseline" in err
