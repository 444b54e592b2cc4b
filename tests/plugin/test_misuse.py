"""Misuse: each mistake ends in one clear line and the right exit code, with and without xdist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pytest_neuralpower

SHIPPED = Path(pytest_neuralpower.__file__).parent / "platforms"


#: (what the user wrote, the line that answers). Each is one test; all fail, exit code 1.
IN_A_TEST = {
    "positional": (
        "@pytest.mark.energy_budget(120)",
        "energy_budget: positional argument 120 has no unit; write energy_budget(mj=120)",
    ),
    "unknown_unit": (
        "@pytest.mark.energy_budget(kwh=1)",
        "energy_budget: unknown argument: kwh=1; allowed: mj, j, uj, platform, per",
    ),
    "unit_in_capitals": (
        "@pytest.mark.energy_budget(mJ=5)",
        "energy_budget: unknown argument, did you mean mj?: mJ=5; allowed: mj, j, uj, platform",
    ),
    "samples_without_per": (
        "@pytest.mark.energy_budget(mj=5, samples=4)",
        "energy_budget: samples=4 must be a whole number from 1, together with per='sample'",
    ),
    "unit_of_another_quantity": (
        "@pytest.mark.runtime_budget(mj=1)",
        "runtime_budget: mj is a unit of energy_budget: mj=1; allowed: ms, s, us, platform, per",
    ),
    "no_limit": (
        "@pytest.mark.energy_budget()",
        "energy_budget: no limit given; give exactly one of mj, j, uj",
    ),
    "two_limits": (
        "@pytest.mark.energy_budget(mj=1, j=1)",
        "energy_budget: 2 limits given (mj, j); give exactly one of mj, j, uj",
    ),
    "text": (
        "@pytest.mark.energy_budget(mj='120')",
        "energy_budget: mj='120' is not a number; write energy_budget(mj=120)",
    ),
    "boolean": (
        "@pytest.mark.energy_budget(mj=True)",
        "energy_budget: mj=True is not a number",
    ),
    "zero": (
        "@pytest.mark.energy_budget(mj=0)",
        "energy_budget: mj=0 must be finite and above 0",
    ),
    "negative": (
        "@pytest.mark.runtime_budget(ms=-5)",
        "runtime_budget: ms=-5 must be finite and above 0",
    ),
    "nan": (
        "@pytest.mark.energy_budget(mj=float('nan'))",
        "energy_budget: mj=nan must be finite and above 0",
    ),
    "unknown_per": (
        "@pytest.mark.energy_budget(mj=1, per='batch')",
        "energy_budget: per='batch'; allowed: 'call', 'sample', 'token'",
    ),
    "power_per_sample": (
        "@pytest.mark.power_budget(w=1, per='sample')",
        "power_budget: power does not add up over samples: per='sample'; allowed: w, mw, platform",
    ),
    "platform_of_wrong_type": (
        "@pytest.mark.energy_budget(mj=1, platform=3)",
        "energy_budget: platform=3 must be one platform's name or path",
    ),
    "unknown_platform": (
        "@pytest.mark.energy_budget(mj=1, platform='titanz')",
        "unknown platform 'titanz'",
    ),
}

IN_THE_BODY = {
    "nothing_predicted": (
        "neuralpower",
        "pass",
        "the test has a budget but predicted nothing: call neuralpower.predict(model, *inputs)",
    ),
    "fixture_not_taken": (
        "",
        "pass",
        "the test has a budget but predicted nothing: call neuralpower.predict(model, *inputs)",
    ),
    "not_a_model": ("neuralpower", "neuralpower.predict('resnet50', image())", "got str"),
    "wrong_channels": (
        "neuralpower",
        "neuralpower.predict(small(), torch.randn(1, 4, 64, 64))",
        "4 channels",
    ),
    "inputs_missing": (
        "neuralpower",
        "neuralpower.predict(small())",
        "missing a required argument",
    ),
    "too_many_inputs": (
        "neuralpower",
        "neuralpower.predict(small(), image(), image())",
        "too many positional arguments",
    ),
    "nothing_to_cost": (
        "neuralpower",
        "neuralpower.predict(torch.nn.Identity(), image())",
        "Identity does nothing that costs anything with these inputs",
    ),
    "factory": (
        "neuralpower",
        "neuralpower.predict(small, image())",
        "call what builds the model",
    ),
    "built_twice": (
        "neuralpower",
        "neuralpower.build(small())",
        "a class or a function; Sequential is built already: predict it as it is",
    ),
    "factory_of_a_language_model": (
        "neuralpower",
        "neuralpower.generate(small, prompt=4, new_tokens=2)",
        "generate needs a model, not small: call what builds it",
    ),
    "empty_batch": (
        "neuralpower",
        "neuralpower.predict(small(), image(0))",
        "0 samples",
    ),
}


def _misuse_file() -> str:
    parts = ["import torch"]
    for name, (marker, _) in IN_A_TEST.items():
        parts.append(
            f"{marker}\ndef test_{name}(neuralpower):\n    neuralpower.predict(small(), image())"
        )
    for name, (argument, body, _) in IN_THE_BODY.items():
        parts.append(
            f"@pytest.mark.energy_budget(j=1000, per='sample')\n"
            f"def test_{name}({argument}):\n    {body}"
        )
    return "\n\n".join(parts)


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_a_misused_marker_or_model_fails_its_test_with_one_line(repo, workers):
    repo.write(_misuse_file())
    result = repo.run("--np-platform=titanx", "-rA", "--tb=short", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert "INTERNALERROR" not in text
    expected = {name: line for name, (_, line) in IN_A_TEST.items()}
    expected |= {name: line for name, (_, _, line) in IN_THE_BODY.items()}
    sections = _sections(text)
    for name, line in expected.items():
        section = sections[f"test_{name}"]
        assert len(section) == 1, f"{name}: not one line but {section}"
        assert line in section[0], name
    assert len(sections) == len(expected)


def _sections(text: str) -> dict[str, list[str]]:
    """Lines of each failed test's section, without blanks and worker names."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        stripped = line.strip("_ ")
        if line.startswith("___"):
            current = sections.setdefault(stripped.removeprefix("ERROR at setup of "), [])
        elif line.startswith("==="):
            current = None
        elif current is not None and line.strip() and not line.startswith("[gw"):
            current.append(line)
    return sections


def test_no_platform_anywhere_fails_guarded_tests_with_the_list(repo):
    repo.write("""
        @pytest.mark.energy_budget(mj=1)
        def test_marked(neuralpower):
            neuralpower.predict(small(), image())

        def test_fixture_alone(neuralpower):
            neuralpower.predict(small(), image())

        def test_asked_for_late(request):
            request.getfixturevalue("neuralpower")

        def test_unguarded():
            pass
    """)
    result = repo.run()
    result.assert_outcomes(errors=2, failed=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = [
        line
        for line in result.outlines
        if "no platform chosen; shipped" in line and not line.startswith(("ERROR", "FAILED"))
    ]
    assert len(lines) == 3
    assert all("titanx" in line and "--np-platform=NAME" in line for line in lines)


def test_several_platforms_need_the_fixture_as_an_argument(repo):
    repo.write("""
        @pytest.mark.energy_budget(mj=1)
        def test_late(request):
            request.getfixturevalue("neuralpower")
    """)
    result = repo.run("--np-platform=titanx", "--np-platform=titanx-tf")
    result.stdout.fnmatch_lines(
        ["this test runs on 2 platforms (titanx, titanx-tf): take the `neuralpower` fixture*"]
    )


def test_a_budget_for_another_platform_than_the_tests_own_says_so(repo):
    repo.write("""
        @pytest.mark.parametrize("batch", [
            pytest.param(1, marks=pytest.mark.energy_budget(mj=1, platform="eyeriss-v9"))
        ])
        def test_param(neuralpower, batch):
            neuralpower.predict(small(), image(batch))
    """)
    result = repo.run("--np-platform=titanx", "--np-platform=titanx-tf")
    result.stdout.fnmatch_lines(
        ["this test runs on 'titanx', but its budgets are for eyeriss-v9: add a budget*"]
    )


#: (arguments, ini text, the line that answers). Each ends the session with exit code 4.
AT_THE_START = {
    "unknown_platform": (["--np-platform=titanz"], "", "unknown platform 'titanz'"),
    "missing_file": (["--np-platform=./nope.json"], "", "nope.json: there is no such file"),
    "empty_file": (["--np-platform=empty.json"], "", "empty.json: not JSON, or truncated"),
    "not_json": (["--np-platform=text.json"], "", "text.json: not JSON, or truncated"),
    "truncated": (["--np-platform=truncated.json"], "", "truncated.json: not JSON, or truncated"),
    "another_json": (["--np-platform=list.json"], "", "list.json: not a platform"),
    "hand_edited": (
        ["--np-platform=edited.json"],
        "",
        "edited.json: its content does not match its sha256",
    ),
    "from_the_future": (
        ["--np-platform=future.json"],
        "",
        "future.json: version 999, this release reads up to",
    ),
    "a_folder": (["--np-platform=./folder.json"], "", "folder.json: it is a directory"),
    "negative_top": (["--np-top=-1"], "", "--np-top=-1: must be 0 (all layers) or more"),
    "top_of_wrong_type": (["--np-top=many"], "", "--np-top"),
    "limit_out_of_range": (
        ["--np-strict-limit=200"],
        "",
        "--np-strict-limit=200: must be between 0 and 100 percent",
    ),
    "ini_of_wrong_type": ([], "np_top = many", "np_top"),
    "ini_limit_of_wrong_type": (
        [],
        "np_strict_limit = few",
        "'few'; write a number of percent from 0 to 100, such as np_strict_limit = 5",
    ),
    "judge_unknown": (["--np-judge=perhaps"], "", "--np-judge"),
    "ini_judge_unknown": ([], "np_judge = perhaps", "np_judge='perhaps': allowed: point, certain"),
    "ini_unknown_platform": ([], "np_platform = titanz", "unknown platform 'titanz'"),
}


@pytest.mark.parametrize("mistake", AT_THE_START)
def test_a_mistake_in_the_settings_ends_the_session_with_one_line(repo, pytester, mistake):
    arguments, ini, line = AT_THE_START[mistake]
    _write_broken_platforms(pytester)
    pytester.makeini(f"[pytest]\n{ini}\n")
    repo.write("def test_one(): pass")
    result = repo.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = [text for text in result.errlines if text.strip() and not text.startswith("  ")]
    assert any(line in text for text in said), said
    # argparse puts its usage above the error; everything else is one line.
    assert len(said) == 1 or said[0].startswith("ERROR: usage:"), said
    assert "Traceback" not in result.stderr.str()
    assert "INTERNALERROR" not in result.stdout.str()


def test_a_mistake_in_the_settings_is_the_same_under_xdist(repo):
    repo.write("def test_one(): pass")
    result = repo.run("-n2", "--np-platform=titanz")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown platform 'titanz'*titanx*"])


def _write_broken_platforms(pytester: pytest.Pytester) -> None:
    text = (SHIPPED / "titanx.json").read_text()
    document = json.loads(text)
    edited = json.loads(text)
    edited["device"] = "a faster one"
    future = {**document, "version": 999}
    (pytester.path / "folder.json").mkdir()
    files = {
        "empty": "",
        "text": "titanx",
        "truncated": text[: len(text) // 2],
        "list": "[1, 2]",
        "edited": json.dumps(edited),
        "future": json.dumps(future),
    }
    for name, content in files.items():
        (pytester.path / f"{name}.json").write_text(content)
