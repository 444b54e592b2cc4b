"""Baselines in a repository of many: tests that are split, ignored and named alike."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_neuralpower.guard.baseline import read_baseline

GUARDED = """
    @pytest.mark.regression
    @pytest.mark.parametrize("batch", [1, 2])
    def test_net(neuralpower, batch):
        neuralpower.predict(small(), image(batch))
"""


@pytest.fixture
def run(repo):
    return lambda *args: repo.run("--np-platform=titanx", *args)


@pytest.fixture
def neuralpower(pytester):
    """The command in a process of its own: (exit code, standard output, standard error)."""

    def call(*args):
        command = (sys.executable, "-c", "from pytest_neuralpower.cli import main; main()")
        done = subprocess.run(
            [*command, *args], capture_output=True, text=True, cwd=pytester.path, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return call


def has_stale(result):
    return any("git rm" in line for line in result.outlines)


class TestStale:
    @pytest.fixture(autouse=True)
    def accepted(self, repo, run):
        repo.write(GUARDED)
        repo.write(GUARDED.replace("test_net", "test_other"), name="test_other")
        run("--np-update-baseline").assert_outcomes(passed=4)

    @pytest.mark.parametrize(
        ("hook", "workers"),
        [
            ("def pytest_collection_modifyitems(items): items[:] = items[::2]", ()),
            ("def pytest_collection_modifyitems(items): items[:] = items[::2]", ("-n2",)),
            ("collect_ignore = ['test_other.py']", ()),
            ("collect_ignore = ['test_other.py']", ("-n2",)),
            ("def pytest_runtest_protocol(item): return 'other' in item.nodeid or None", ()),
        ],
    )
    def test_what_a_hook_leaves_out_is_not(self, pytester, run, hook, workers):
        pytester.makeconftest(hook)
        assert not has_stale(run(*workers))

    @pytest.mark.parametrize(
        "args",
        [("--setup-only",), ("test_guard.py::test_net[1]",), ("--pyargs", "test_guard")],
    )
    def test_what_an_option_leaves_out_is_not(self, run, args):
        assert not has_stale(run(*args))

    def test_what_is_in_no_file_any_more_is(self, pytester, repo, run):
        (pytester.path / "test_other.py").unlink()
        repo.write(GUARDED.replace("[1, 2]", "[1]"))
        result = run()
        result.stdout.fnmatch_lines(["3 baselines are stale: *"])

    def test_a_group_of_xdist_is_no_part_of_a_name(self, repo, run):
        repo.write(
            GUARDED.replace(
                "@pytest.mark.reg", "@pytest.mark.xdist_group('a')\n    @pytest.mark.reg"
            )
        )
        run("--np-update-baseline").assert_outcomes(passed=4)
        result = run("-n2", "--dist=loadgroup")
        result.stdout.no_fnmatch_line("*no baseline yet*")
        assert not has_stale(result)


class TestNames:
    """Of two tests that one file name would fit, each has its own baseline."""

    @pytest.mark.parametrize(
        "files",
        [("tests/v1.5/test_m.py", "tests/v1/5/test_m.py"), ("test_net.py", "test_Net.py")],
        ids=["dots", "case"],
    )
    def test_both_are_held(self, pytester, repo, run, files):
        pytester.makeini("[pytest]\naddopts = --import-mode=importlib\n")
        pytester.syspathinsert()
        for file, layers in zip(files, (2, 3), strict=True):
            repo.write(GUARDED.replace("[1, 2]", "[1]").replace("small()", f"small()[:{layers}]"))
            (pytester.path / file).parent.mkdir(parents=True, exist_ok=True)
            (pytester.path / "test_guard.py").replace(pytester.path / file)
        run("--np-update-baseline=new").assert_outcomes(passed=2)
        paths = sorted((pytester.path / "budgets/baselines/titanx").iterdir())
        assert len({path.name.casefold() for path in paths}) == 2
        assert {read_baseline(path).test.partition("::")[0] for path in paths} == set(files)
        result = run()
        result.assert_outcomes(passed=2)
        result.stdout.no_fnmatch_line("*no baseline yet*")
        assert not has_stale(result)
        run("--np-update-baseline").stdout.fnmatch_lines(["baselines: 0 written, 2 unchanged"])

    def test_a_copied_file_is_refused(self, pytester, repo, run):
        repo.write(GUARDED)
        run("--np-update-baseline")
        folder = pytester.path / "budgets/baselines/titanx"
        (folder / "test_guard.test_net-1.yaml").replace(folder / "test_guard.test_net-2.yaml")
        result = run()
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["baseline * is of test test_guard.py::test_net?1?, not of *"])
        run("--np-update-baseline").assert_outcomes(passed=2)
        run().assert_outcomes(passed=2)

    @pytest.mark.parametrize("args", [("-k2",), ("--np-update-baseline",)])
    def test_a_name_given_twice_is_refused_on_every_run(self, repo, run, args):
        body = GUARDED.replace("mark.regression", "mark.regression(baseline='net')")
        repo.write(body.replace("[1, 2]", "[1]"))
        run("--np-update-baseline").assert_outcomes(passed=1)
        repo.write(body)
        result = run(*args)
        assert result.ret == 1
        result.stdout.fnmatch_lines(["baseline *net.yaml is of two tests, *give one another name*"])


def test_another_torch_alone_rewrites_nothing(pytester, repo, run):
    repo.write(GUARDED)
    run("--np-update-baseline")
    for path in (pytester.path / "budgets/baselines/titanx").iterdir():
        path.write_text(path.read_text().replace('torch: "2.', 'torch: "1.'))
    run("--np-update-baseline").stdout.fnmatch_lines(["baselines: 0 written, 2 unchanged"])


def test_a_failed_subtest_writes_no_baseline(pytester, repo, run):
    repo.write(
        GUARDED.replace("batch):", "batch, subtests):").replace(
            "neuralpower.predict(",
            "with subtests.test(batch=batch): assert batch == 1\n        neuralpower.predict(",
        )
    )
    run("--np-update-baseline")
    names = [path.name for path in (pytester.path / "budgets/baselines/titanx").iterdir()]
    assert names == ["test_guard.test_net-1.yaml"]


class TestBaselinesCommand:
    def test_a_merge_keeps_the_cheaper_model(self, pytester, repo, run, neuralpower):
        def git(*args):
            identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
            return subprocess.run(["git", *identity, *args], capture_output=True, check=False)

        def accept(layers):
            repo.write(GUARDED.replace("[1, 2]", "[1]").replace("small()", f"small()[:{layers}]"))
            run("--np-update-baseline")
            git("add", "budgets")
            git("commit", "-m", "x")

        git("init", "-b", "main")
        accept(2)
        git("checkout", "-b", "topic")
        accept(4)
        git("checkout", "main")
        accept(3)
        (path,) = (pytester.path / "budgets/baselines/titanx").iterdir()
        ours = read_baseline(path)
        assert git("merge", "topic").returncode == 1
        assert "<<<<<<<" in path.read_text()
        assert neuralpower("baselines", "merge")[0] == 0
        assert read_baseline(path).layers == ours.layers

        files = [pytester.path / name for name in ("base.yaml", "ours.yaml", "theirs.yaml")]
        for file, revision in zip(files, ("main~1", "topic", "main"), strict=True):
            file.write_bytes(git("show", f"{revision}:{path.relative_to(pytester.path)}").stdout)
        assert neuralpower("baselines", "merge", "--driver", *map(str, files))[0] == 0
        assert read_baseline(files[1]).layers == ours.layers  # here it is theirs

    def test_install_names_the_driver(self, pytester, neuralpower):
        subprocess.run(["git", "init"], capture_output=True, check=True)
        assert neuralpower("baselines", "merge", "--install")[0] == 0
        attributes = (pytester.path / ".gitattributes").read_text()
        assert attributes == "budgets/baselines/**/*.yaml merge=neuralpower-baseline\n"

    def test_stale_decides_on_all_that_is_collected(self, pytester, repo, run, neuralpower):
        repo.write(GUARDED)
        run("--np-update-baseline")
        pytester.makeconftest("def pytest_collection_modifyitems(items): items[:] = items[::2]")
        assert neuralpower("baselines", "stale")[0] == 0
        repo.write(GUARDED.replace("[1, 2]", "[1]"))
        code, out, _ = neuralpower("baselines", "stale")
        assert code == 1
        assert "git rm budgets/baselines/titanx/test_guard.test_net-2.yaml" in out
