"""Files to copy into a project's CI: valid, and safe for pull requests of strangers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "docs" / "workflows"
GITHUB = sorted(WORKFLOWS.glob("github-*.yml"))
GITLAB = sorted(WORKFLOWS.glob("gitlab-*.yml"))


def name(path: Path) -> str:
    return path.name


def load(path: Path) -> dict:
    # YAML 1.1 reads the key `on` as true.
    content = yaml.safe_load(path.read_text("utf-8"))
    return {("on" if key is True else key): value for key, value in content.items()}


def scripts(path: Path) -> list[str]:
    """Every shell script of a GitHub workflow."""
    steps = [step for job in load(path)["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_there_are_files_for_guard_and_calibration():
    assert {each.name for each in (*GITHUB, *GITLAB)} == {
        "github-guard.yml",
        "github-comment.yml",
        "github-calibrate.yml",
        "gitlab-guard.yml",
        "gitlab-calibrate.yml",
    }


@pytest.mark.parametrize(
    ("schema", "paths"), [("github-workflows", GITHUB), ("gitlab-ci", GITLAB)], ids=["hub", "lab"]
)
def test_the_files_follow_the_schema_of_their_ci(schema, paths):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = ["-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", GITHUB, ids=name)
def test_every_script_is_valid_shell(path):
    for script in scripts(path):
        done = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", GITHUB, ids=name)
def test_no_script_is_pasted_together_from_what_a_stranger_wrote(path):
    for script in scripts(path):
        assert "${{" not in script  # values come by environment variables


def test_strangers_code_runs_with_a_token_that_only_reads_and_no_secret():
    path = WORKFLOWS / "github-guard.yml"
    workflow = load(path)
    assert set(workflow["on"]) == {"pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert "secrets." not in path.read_text("utf-8")
    assert "github.token" not in path.read_text("utf-8")


def test_the_token_that_comments_runs_no_code_of_the_pull_request():
    workflow = load(WORKFLOWS / "github-comment.yml")
    guard = load(WORKFLOWS / "github-guard.yml")
    assert workflow["on"]["workflow_run"]["workflows"] == [guard["name"]]
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert not any("uses" in step for step in job["steps"])
    (script,) = scripts(WORKFLOWS / "github-comment.yml")
    assert not re.search(r"\b(eval|source|python|pip|pytest|bash)\b", script)


GH = """#!/usr/bin/env bash
# Stands in for GitHub: answers as it would, and notes what was asked.
echo "$*" >> calls
case "$1 $2" in
  "api repos/o/r/actions"*) test -z "$BREACH" || echo neuralpower-comment ;;
  "run download")
    mkdir comment
    echo '17; touch owned' > comment/number
    echo '### over' > comment/report.md ;;
  "pr view") echo "$PULL_HEAD" ;;
  "api repos/o/r/issues"*) test -z "$COMMENTED" || echo 99 ;;
esac
"""


@pytest.mark.parametrize(
    ("answers", "last"),
    [
        ({}, "api repos/o/r/actions/runs/5/artifacts"),
        ({"BREACH": "1"}, "pr comment 17 --body-file body.md"),
        ({"BREACH": "1", "COMMENTED": "1"}, "api --method PATCH repos/o/r/issues/comments/99"),
        ({"BREACH": "1", "PULL_HEAD": "another"}, "pr view 17"),
    ],
    ids=["no breach", "first", "again", "of another commit"],
)
def test_a_comment_is_written_on_a_breach_alone_and_where_it_belongs(tmp_path, answers, last):
    (tmp_path / "gh").write_text(GH, encoding="utf-8")
    (tmp_path / "gh").chmod(0o755)
    (script,) = scripts(WORKFLOWS / "github-comment.yml")
    given = {"GH_REPO": "o/r", "RUN": "5", "HEAD_SHA": "abc", "MARK": "<!-- neuralpower -->"}
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        **given,
        **dict.fromkeys(("BREACH", "COMMENTED"), ""),
        "PULL_HEAD": "abc",
        **answers,
    }
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "calls").read_text().splitlines()[-1].startswith(last)
    assert not (tmp_path / "owned").exists()
    if "comment" in last:
        assert (tmp_path / "body.md").read_text() == "<!-- neuralpower -->\n### over\n"


def test_gitlabs_token_is_used_without_the_repository():
    content = load(WORKFLOWS / "gitlab-guard.yml")
    token = "NEURALPOWER_GITLAB_TOKEN"
    assert token not in str(content["energy-guard"])
    assert token in str(content["energy-comment"])
    assert content["energy-comment"]["variables"]["GIT_STRATEGY"] == "none"


def test_yaml_on_the_pages_is_valid_and_files_they_name_exist():
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text("utf-8")
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
            assert yaml.safe_load(block)
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_pre_commit_hook_has_what_pre_commit_asks_for():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert hook["pass_filenames"] is False
    page = (ROOT / "docs" / "pre-commit.md").read_text("utf-8")
    local, remote = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    copied = yaml.safe_load((WORKFLOWS / "pre-commit-config.yaml").read_text("utf-8"))
    assert yaml.safe_load(local) == copied
    (repository,) = yaml.safe_load(remote)["repos"]
    assert [each["id"] for each in repository["hooks"]] == [hook["id"]]
