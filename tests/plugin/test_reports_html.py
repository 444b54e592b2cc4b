"""``--np-report=page.html``: one file that fetches nothing, and that no name can break out of."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser

import pytest

NAMES = """
    from torch import nn

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            name = "</script><script>alert(1)</script>"
            self.inside = nn.ModuleDict({name: nn.ReLU()})

        def forward(self, x):
            for layer in self.inside.values():
                x = layer(x)
            return x

    @pytest.mark.parametrize("case", ["</script><img src=x onerror=alert(1)>"])
    @pytest.mark.energy_budget(uj=1)
    def test_odd(neuralpower, case):
        neuralpower.predict(Odd(), image())

    def test_small(neuralpower):
        neuralpower.predict(small(), image())
"""


class Page(HTMLParser):
    """Elements of a page, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.texts.append((tag, ""))

    def handle_data(self, data):
        if self.texts and self.lasttag in ("script", "style"):
            tag, text = self.texts[-1]
            self.texts[-1] = (tag, text + data)

    @property
    def data(self):
        return json.loads(next(text for tag, text in self.texts if tag == "script"))

    @property
    def policy(self) -> str:
        return next(
            attributes["content"]
            for tag, attributes in self.tags
            if attributes.get("http-equiv") == "Content-Security-Policy"
        )


@pytest.fixture
def page(repo, pytester):
    repo.write(NAMES)
    result = repo.run("--np-platform=titanx", "--np-report=out/page.html")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["report written: out/page.html"])
    return Page((pytester.path / "out/page.html").read_text("utf-8"))


def test_names_of_tests_and_modules_cannot_end_the_script(page):
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 3
    assert not any(tag == "img" for tag, _ in page.tags)
    tests = [each["test"] for each in page.data["predictions"]]
    assert "test_guard.py::test_odd[</script><img src=x onerror=alert(1)>]" in tests
    assert any(text.startswith("inside.</script><script>") for text in page.data["texts"])


def test_only_the_scripts_inside_may_run_and_nothing_is_fetched(page):
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    assert "default-src 'none'" in page.policy
    assert "script-src 'unsafe-inline'" not in page.policy
    links = {
        (tag, attributes.get("src") or attributes.get("href"))
        for tag, attributes in page.tags
        if attributes.get("src") or attributes.get("href")
    }
    assert links == {("a", "#layers")}


def test_the_page_holds_what_the_json_report_does(repo, pytester):
    repo.write(NAMES)
    repo.run("--np-platform=titanx", "--np-report=page.html", "--np-report=report.json")
    data = Page((pytester.path / "page.html").read_text("utf-8")).data
    report = json.loads((pytester.path / "report.json").read_text("utf-8"))
    for shown, record in zip(data["predictions"], report["predictions"], strict=True):
        assert shown["energy_mj"] == record["energy_mj"]
        assert shown["budgets"] == record["budgets"]
        assert shown["failure"] == record["failure"]
        paths = [data["texts"][number] for number in shown["layers"]["path"]]
        assert paths == [layer["path"] for layer in record["layers"]]
        assert shown["layers"]["energy_mj"] == [each["energy_mj"] for each in record["layers"]]
        assert shown["provenance"]["device"].startswith("NVIDIA GeForce GTX Titan X")


def test_layers_that_differ_from_the_baseline_keep_its_cost(repo, pytester):
    test = """
        from torch import nn

        @pytest.mark.regression
        def test_one(neuralpower):
            layers = [nn.Conv2d(3, {width}, 3), nn.ReLU(){more}]
            neuralpower.predict(nn.Sequential(*layers), image())
    """
    repo.write(test.format(width=32, more=", nn.MaxPool2d(2)"))
    repo.run("--np-platform=titanx", "--np-update-baseline")
    repo.write(test.format(width=64, more=""))
    pytester.makepyfile(models=(pytester.path / "models.py").read_text())
    result = repo.run("--np-platform=titanx", "--np-report=page.html")
    result.assert_outcomes(failed=1)
    data = Page((pytester.path / "page.html").read_text("utf-8")).data
    (shown,) = data["predictions"]
    changed, gone = shown["comparison"]["changed"], shown["comparison"]["gone"]
    assert 0 < changed["0"]["energy_mj"] < shown["layers"]["energy_mj"][0]
    assert [(data["texts"][each["op"]], each["at"]) for each in gone] == [("max_pool2d", 2)]
    assert gone[0]["energy_mj"] > 0


ADVISED = """
    @pytest.mark.energy_budget(uj=1)
    def test_advised(neuralpower):
        model = nn.Sequential(nn.Conv2d(3, 33, 3), nn.Conv2d(33, 33, 3), nn.Conv2d(33, 8, 3))
        neuralpower.predict(model, image())
"""


def test_the_same_session_gives_the_same_bytes_twice(repo, pytester):
    repo.write(NAMES + ADVISED)
    pages = []
    for name in ("one", "two"):
        repo.run("--np-platform=titanx", f"--np-report={name}.html")
        pages.append((pytester.path / f"{name}.html").read_bytes())
    assert pages[0] == pages[1]
    assert b"33 -> 32" in pages[0]  # advice is not cut off by time


def test_without_plotly_one_line_names_the_extra_before_any_test_runs(repo, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    repo.write(NAMES)
    result = repo.run("--np-platform=titanx", "--np-report=page.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: an HTML report needs plotly*pip install 'pytest-neuralpower?html?'"]
    )


def test_a_session_without_predictions_has_a_page_too(repo, pytester):
    repo.write("def test_other(): pass")
    repo.run("--np-platform=titanx", "--np-report=page.html").assert_outcomes(passed=1)
    assert Page((pytester.path / "page.html").read_text("utf-8")).data["predictions"] == []
