"""Budget files are collected as tests; each mistake in one is a line with its place."""

from __future__ import annotations

import textwrap

import pytest

FILE = "models.budget.yaml"

GOOD = """
    models:
      small:
        model: models.py:small
        inputs: [[8, 3, 64, 64]]
        budgets: {energy: {j: 1000}, runtime: {s: 1}}
"""


@pytest.fixture
def write(repo, pytester):
    """``write(text, name)`` a budget file."""

    def run(text, name=FILE):
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))

    return run


def test_each_model_is_a_test(repo, write):
    write(GOOD)
    result = repo.run("--np-platform=titanx", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"{FILE}::small PASSED*", "*of 1,000 J*"])


def test_a_broken_budget_fails_at_the_models_line(repo, write):
    write(GOOD.replace("j: 1000", "uj: 1"))
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "energy budget exceeded: Sequential on titanx",
            "  budget     1.00 µJ per call",
            f"FAILED {FILE}::small - * > * on titanx",
        ]
    )


def test_platforms_of_the_file_have_budgets_and_baselines_each(repo, write, pytester):
    write("""
        defaults:
          platforms: [titanx, titanx-tf]
          tolerance: {max_percent: 0}
        models:
          small:
            model: models.py:small
            inputs: [[8, 3, 64, 64]]
            budgets:
              energy:
                - {uj: 1, platform: titanx}
                - {j: 1000, platform: titanx-tf}
          other:
            model: models.py:small
            inputs: [[1, 3, 64, 64]]
    """)
    result = repo.run("--np-platform=titanx", "--np-update-baseline", "-v")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines_random(
        [f"{FILE}::small[[]titanx] FAILED*", f"{FILE}::small[[]titanx-tf] PASSED*"]
    )
    folder = pytester.path / "budgets/baselines"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml")) == [
        "titanx-tf/models.other.yaml",
        "titanx-tf/models.small.yaml",
        "titanx/models.other.yaml",
    ]


def test_a_tolerance_holds_a_model_against_its_baseline(repo, write, pytester):
    text = GOOD.replace("budgets: {energy: {j: 1000}, runtime: {s: 1}}", "tolerance: {max_mj: 0.1}")
    write(text)
    repo.run("--np-platform=titanx", "--np-update-baseline").assert_outcomes(passed=1)
    write(text.replace("[8, 3, 64, 64]", "[8, 3, 64, 66]"))
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["costs more than its baseline: Sequential on titanx"])


def test_arguments_and_inputs_of_every_form(repo, write, pytester):
    pytester.makepyfile(
        zoo="""
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self, words, width=16):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids, mask=None):
        assert ids.min() == 1 and ids.max() == 9, ids
        assert mask is None or mask.dtype == torch.bool
        return self.head(self.table(ids).mean(1))

image = torch.empty(1, 3, 8, 8, device="meta")

def ids():
    return {"ids": torch.tensor([[1, 9]])}

ready = nn.Conv2d(3, 8, 3)
"""
    )
    write("""
        models:
          words:
            model: zoo:Words
            arguments: {words: 10}
            inputs:
              - {shape: [2, 12], dtype: int64, range: [1, 9]}
              - {shape: [2, 12], dtype: bool, name: mask}
            budgets: {energy: {j: 1}}
          called:
            model: zoo:Words
            arguments: {words: 10, width: 32}
            inputs: zoo:ids
            budgets: {energy: {j: 1}}
          ready:
            model: zoo:ready
            inputs: zoo:image
            budgets: {energy: {j: 1}}
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=3)


@pytest.mark.parametrize("shape", ["'8,3,64,64'", "'input=8,3,64,64:float32'", "[8, 3, 64, 64]"])
def test_an_input_may_be_written_as_on_the_command_line(repo, write, line, shape):
    write(GOOD.replace("[[8, 3, 64, 64]]", f"[{shape}]"))
    result = repo.run("--np-platform=titanx", "--np-baselines=none")
    result.assert_outcomes(passed=1)
    assert "0.126 J of 1,000 J" in line(result, "of 1,000 J")


def test_tags_select(repo, write):
    write(
        GOOD
        + """
      tagged:
        model: models.py:small
        inputs: [[1, 3, 64, 64]]
        budgets: {energy: {j: 1000}}
        tags: [nightly]
"""
    )
    result = repo.run("--np-platform=titanx", "--strict-markers", "-m", "nightly")
    result.assert_outcomes(passed=1, deselected=1)


def test_paths_start_at_the_file(repo, write, pytester):
    pytester.mkdir("sub").joinpath("nets.py").write_text((pytester.path / "models.py").read_text())
    write(GOOD.replace("models.py", "nets.py"), "sub/deep.budget.yaml")
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


def test_no_platform_anywhere_fails_with_the_list(repo, write):
    write(GOOD)
    result = repo.run()
    result.assert_outcomes(errors=1)  # before the test runs, as with markers
    result.stdout.fnmatch_lines(["no platform chosen; shipped platforms: *titanx*"])


SMALL = "model: models.py:small, inputs: [[8, 3, 64, 64]]"

MISTAKES = {
    "broken YAML": ("models: {a: [", "*1: not YAML (*)"),
    "no such date": ("models: {a: 2001-13-45}", "*1: not YAML (month must be in 1..12)"),
    "nested too deeply": ("models: " + "[" * 3000, "*1: not YAML (*nest*)"),
    "empty": ("", "*:1: the file is empty; it needs models:"),
    "a list": ("- a\n", "*:1: the file must be a mapping of models, defaults, not [[]'a']"),
    "unknown top key": (
        f"model:\n  a: {{{SMALL}}}\n",
        "*:1: unknown key 'model' of the file, did you mean models?; allowed: models, defaults",
    ),
    "no models": ("defaults: {}\n", "*:1: it needs models:, a mapping of names to models"),
    "unknown key": (
        f"models:\n  a: {{{SMALL}, budget: {{}}, tolerance: {{}}}}\n",
        "*:2: unknown key 'budget' of a, did you mean budgets?; allowed: model, arguments, inputs, "
        "generate, platforms, budgets, tolerance, tags",
    ),
    "one key twice": (
        "models:\n  a: {}\n  a: {}\n", "*:3: the key 'a' is there twice; remove one",
    ),
    "guards nothing": (
        f"models:\n  a: {{{SMALL}}}\n", "*:2: a guards nothing: give budgets: or tolerance:",
    ),
    "no inputs": (
        "models:\n  a:\n    model: m:f\n    budgets: {}\n",
        "*:2: a needs inputs: or generate:; allowed: *",
    ),
    "no import path": (
        f"models:\n  a: {{{SMALL.replace('models.py:small', 'resnet')}, tolerance: {{}}}}\n",
        "*:2: model: 'resnet' must be package.module:name or path/to/file.py:name",
    ),
    "unknown unit": (
        f"models:\n  a:\n    {SMALL.replace(', inp', chr(10) + '    inp')}\n    budgets:\n"
        "      energy: {kwh: 1}\n",
        "*:6: energy: unknown argument*: kwh=1; allowed: mj, j, uj, platform, per, samples, tokens",
    ),
    "unknown quantity": (
        f"models:\n  a: {{{SMALL}, budgets: {{memory: {{mb: 3}}}}}}\n",
        "*:2: unknown key 'memory' of budgets; allowed: energy, runtime, power",
    ),
    "a bare number": (
        f"models:\n  a: {{{SMALL}, budgets: {{energy: 3}}}}\n",
        "*:2: energy: 3 must be a mapping of a unit to a number, such as {mj: 120}",
    ),
    "unknown tolerance": (
        f"models:\n  a: {{{SMALL}, tolerance: {{percent: 3}}}}\n",
        "*:2: tolerance: unknown argument*: percent=3; allowed: max_percent, *",
    ),
    "unknown dtype": (
        "models:\n  a:\n    model: m:f\n    tolerance: {}\n    inputs:\n"
        "      - shape: [1]\n        dtype: float\n",
        "*:7: dtype: 'float'; allowed: bfloat16, bool, *",
    ),
    "no shape": (
        "models:\n  a: {model: 'm:f', tolerance: {}, inputs: [{dtype: int64}]}\n",
        "*:2: an input needs shape:, a list of positive sizes such as [[]1, 3, 224, 224]",
    ),
    "one shape as the inputs": (
        "models:\n  a:\n    model: 'm:f'\n    tolerance: {}\n    inputs: [1, 3, 9]\n",
        "*:5: inputs: [[]1, 3, 9] is one shape, not a list of them; write [[][[]1, 3, 9]]",
    ),
    "an empty axis": (
        "models:\n  a: {model: 'm:f', tolerance: {}, inputs: [[1, 0]]}\n",
        "*:2: shape: [[]1, 0], a list of positive sizes such as *",
    ),
    "a range that is none": (
        "models:\n  a: {model: 'm:f', tolerance: {}, inputs: [{shape: [1], range: 9}]}\n",
        "*:2: range: 9 must be the lowest and the highest value, such as [[]0, 30521]",
    ),
    "a marker as a tag": (
        f"models:\n  a: {{{SMALL}, tolerance: {{}}, tags: [skip]}}\n",
        "*:2: tags: 'skip' must be a word that is not a pytest marker",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_its_place(repo, write, text, line):
    write(text)
    result = repo.run("--np-platform=titanx")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"{FILE}{line}".replace(FILE + "*", f"*{FILE}*")])
    assert "Traceback" not in result.stdout.str()


def test_all_mistakes_of_a_file_show_at_once(repo, write):
    write("models:\n  a: {model: x, inputs: 3}\n  b: {budgets: {energy: {j: -1}}}\n")
    result = repo.run("--np-platform=titanx", "-n2")
    result.stdout.fnmatch_lines(
        [
            "*:2: a guards nothing*",
            "*:2: model: 'x' must*",
            "*:2: inputs: 3 must*",
            "*:3: b needs *",
            "*:3: energy: j=-1 must be *; write energy: {mj: 120}",
        ]
    )
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("models.py:large", f"{FILE}:*: *models.py:large'*has no 'large'*"),
        ("nowhere:small", f"{FILE}:*: cannot import 'nowhere': *"),
        ("nowhere.py:small", f"{FILE}:*: no such file: *nowhere.py"),
        (
            "models.py:small\n        arguments: {width: 3}",
            f"{FILE}:*: *models.py:small' could not be called: *width*; give its arguments as "
            "arguments: {name: value}",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(repo, write, model, line):
    write(GOOD.replace("models.py:small", model))
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([line])
    assert "Traceback" not in result.stdout.str()


# -- What a file may name: it is text of whoever sent the branch.

RUNS = "pathlib.Path('it-ran').touch()"

#: Import path -> what its line says.
REFUSED = {
    "os:system": "os is not below *: list it in the ini file, np_allow_imports = os, or *",
    "subprocess:check_output": "subprocess is not below *",
    "torch:load": "torch is not below *",
    "torch.hub:load": "torch is not below *",
    "torch.nn.modules.module:torch.load": "torch is not below *",
    "mine:os.system": "os is not below *",
    "mine.py:os.system": "os is not below *",
    "mine:system": "a function of posix*",
    "mine:run": "a function of subprocess, not of a file below *",
    "mine:later": "a function of *",
    "mine:Opened": "*returns no torch.nn.Module*",
    "../outside.py:net": "*is not below *: move it there",
    "installed:net": "installed is not below *",
}


@pytest.fixture
def sources(pytester, monkeypatch):
    """Modules of the repository, beside it, and of a package that is installed within it."""
    runs = f"import pathlib\nfrom torch import nn\ndef net(): return {RUNS} or nn.ReLU()\n"
    (pytester.path / "mine.py").write_text(
        "import functools, os, pathlib, subprocess\nfrom os import system\n"
        "from subprocess import run\n"
        "from torch import nn\nfrom torch.nn import ReLU\n"
        "later = functools.partial(os.system)\n"
        "def net(): return nn.ReLU()\n"
        "cached = functools.cache(net)\n"
        f"class Opened:\n    def __init__(self, *args, **kwargs): {RUNS}\n"
    )
    (pytester.path.parent / "outside.py").write_text(runs)
    installed = pytester.mkdir(".venv") / "lib/python3/site-packages"
    installed.mkdir(parents=True)
    (installed / "installed.py").write_text(runs)
    monkeypatch.syspath_prepend(installed)
    pytester.syspathinsert()
    return pytester


ENTRY = """
    models:
      a:
        model: "{}"
        arguments: {}
        inputs: [[1, 3]]
        budgets: {{energy: {{j: 1000}}}}
"""


@pytest.mark.parametrize(("target", "line"), REFUSED.items(), ids=REFUSED)
def test_code_from_elsewhere_is_refused_before_it_runs(repo, write, sources, target, line):
    write(ENTRY.format(target, "{args: touch it-ran, command: touch it-ran}"))
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{FILE}:3: '*': {line}".replace("': ", "'*", 1)])
    assert not (sources.path / "it-ran").exists()


@pytest.mark.parametrize(
    "target", ["mine:net", "mine.py:net", "mine:cached", "mine:ReLU", "torch.nn:ReLU"]
)
def test_the_repository_s_own_code_and_layers_of_torch_are_called(repo, write, sources, target):
    write(ENTRY.format(target, "{}"))
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


def test_packages_that_the_ini_file_lists_are_called(repo, write, sources):
    write(ENTRY.format("installed:net", "{}"))
    sources.makeini("[pytest]\nnp_allow_imports = torch.nn installed")
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)
    assert (sources.path / "it-ran").exists()


def test_inputs_and_drafts_are_held_to_it_too(repo, write, sources):
    write(ENTRY.format("mine:net", "{}").replace("[[1, 3]]", "os:getcwd"))
    result = repo.run("--np-platform=titanx")
    result.stdout.fnmatch_lines([f"{FILE}:3: *os is not below *"])
