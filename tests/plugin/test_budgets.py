"""Budget markers: what passes, what fails, and what people read when it fails."""

from __future__ import annotations

import re

import msgspec
import pytest

from pytest_neuralpower import load_platform

GUARDED = """
    @pytest.mark.{marker}
    def test_small(neuralpower):
        neuralpower.predict(small(), image())
"""


@pytest.mark.parametrize(
    ("marker", "outcome"),
    [
        ("energy_budget(mj=0.001)", "failed"),
        ("energy_budget(mj=1e6)", "passed"),
        ("energy_budget(j=1e-6)", "failed"),
        ("energy_budget(j=1e3)", "passed"),
        ("energy_budget(uj=1)", "failed"),
        ("energy_budget(uj=1e9)", "passed"),
        ("runtime_budget(us=1)", "failed"),
        ("runtime_budget(ms=1e3)", "passed"),
        ("runtime_budget(s=1)", "passed"),
        ("power_budget(w=1)", "failed"),
        ("power_budget(w=1000)", "passed"),
        ("power_budget(mw=1)", "failed"),
    ],
)
def test_a_budget_in_any_unit_fails_only_the_dearer_model(repo, marker, outcome):
    repo.write(GUARDED.format(marker=marker))
    repo.run("--np-platform=titanx").assert_outcomes(**{outcome: 1})


def test_the_failure_says_budget_prediction_excess_and_top_layers(repo):
    repo.write(GUARDED.format(marker="energy_budget(mj=0.5)"))
    result = repo.run("--np-platform=titanx")
    result.stdout.fnmatch_lines(
        [
            "energy budget exceeded: Sequential on titanx",
            "  budget     0.5 mJ per call",
            "  predicted  * per call, * times the budget (by *)",
            "  one call of 8 samples: *J, *s, * W",
            "  (gross device energy, idle included)",
            "  layers:",
            "*share*energy*runtime*operation*output*layer*",
            "*%*J*conv2d*8x128x30x30*3*",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_fitting_budget_is_the_one_the_failure_predicted(repo):
    repo.write(GUARDED.format(marker="energy_budget(mj=0.5)"))
    text = repo.run("--np-platform=titanx").stdout.str()
    value = re.search(r"predicted  ([\d.,]+) mJ per call", text).group(1).replace(",", "")
    limit = float(value) * 1.01
    repo.write(GUARDED.format(marker=f"energy_budget(mj={limit})"), name="test_again")
    repo.run("--np-platform=titanx", "test_again.py").assert_outcomes(passed=1)


def test_per_sample_divides_by_the_batch(repo):
    repo.write("""
        @pytest.mark.parametrize("batch", [1, 8])
        def test_share(neuralpower, batch):
            prediction = neuralpower.predict(small(), image(batch))
            assert prediction.batch == batch

        @pytest.mark.energy_budget(mj=1e-3, per="sample")
        def test_small(neuralpower):
            prediction = neuralpower.predict(small(), image(8))
            print(f"call={prediction.energy_mj!r}")
    """)
    result = repo.run("--np-platform=titanx", "--np-top=1")
    result.assert_outcomes(passed=2, failed=1)
    text = result.stdout.str()
    call = float(re.search(r"call=([\d.e-]+)", text).group(1))
    sample = re.search(r"predicted  ([\d.]+) mJ per sample", text).group(1)
    assert float(sample) == pytest.approx(call / 8, rel=0.01)


def test_markers_on_a_class_and_a_module_guard_every_test_in_them(repo):
    repo.write("""
        pytestmark = pytest.mark.runtime_budget(us=1)

        @pytest.mark.energy_budget(uj=1)
        class TestSmall:
            def test_both(self, neuralpower):
                neuralpower.predict(small(), image())
    """)
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["energy budget exceeded: *", "*per call, * times*", "runtime budget exceeded: *"]
    )


def test_a_closer_marker_overrides_the_same_limit_of_its_class(repo):
    repo.write("""
        @pytest.mark.energy_budget(uj=1)
        class TestSmall:
            @pytest.mark.energy_budget(j=1000)
            def test_loosened(self, neuralpower):
                neuralpower.predict(small(), image())

            def test_as_its_class(self, neuralpower):
                neuralpower.predict(small(), image())
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1, failed=1)


def test_every_prediction_of_a_test_is_held_against_its_budget(repo):
    repo.write("""
        @pytest.mark.runtime_budget(ms=1)
        def test_two(neuralpower):
            neuralpower.predict(small(), image(1))
            neuralpower.predict(small(), image(512))
    """)
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  one call of 512 samples*"])
    result.stdout.no_fnmatch_line("  one call of 1 sample:*")


def test_a_plain_assert_on_a_prediction_works_without_a_marker(repo):
    repo.write("""
        def test_assert(neuralpower):
            prediction = neuralpower.predict(small(), image())
            assert 0 < prediction.energy_mj < 1e6
            assert prediction.power_w == pytest.approx(prediction.energy_mj / prediction.runtime_ms)
            assert neuralpower.platform.name == "titanx"
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


def test_a_failing_assert_wins_over_the_budget(repo):
    repo.write("""
        @pytest.mark.energy_budget(uj=1)
        def test_wrong(neuralpower):
            neuralpower.predict(small(), image())
            assert 1 + 1 == 3
    """)
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert (1 + 1) == 3*"])
    result.stdout.no_fnmatch_line("*budget exceeded*")


def test_xfail_skip_and_parametrize_behave(repo):
    repo.write("""
        @pytest.mark.xfail(strict=True)
        @pytest.mark.energy_budget(uj=1)
        def test_known(neuralpower):
            neuralpower.predict(small(), image())

        @pytest.mark.skip(reason="not today")
        @pytest.mark.energy_budget(uj=1)
        def test_skipped(neuralpower):
            neuralpower.predict(small(), image())

        @pytest.mark.skipif(True, reason="no platform is needed for this")
        @pytest.mark.energy_budget(wrong=1)
        def test_skipped_before_its_marker_is_read(neuralpower):
            pass

        @pytest.mark.parametrize("batch", [
            1, pytest.param(4, marks=pytest.mark.energy_budget(uj=1))
        ])
        def test_batches(neuralpower, batch):
            neuralpower.predict(small(), image(batch))

        def test_skips_itself(neuralpower):
            pytest.skip("no model")
    """)
    result = repo.run("--np-platform=titanx", "--strict-markers", "-rx")
    result.assert_outcomes(xfailed=1, skipped=3, passed=1, failed=1)


def test_the_exception_can_be_named_in_xfail(repo):
    repo.write("""
        from pytest_neuralpower import BudgetExceeded

        @pytest.mark.xfail(raises=BudgetExceeded, strict=True)
        @pytest.mark.energy_budget(uj=1)
        def test_known(neuralpower):
            neuralpower.predict(small(), image())
    """)
    repo.run("--np-platform=titanx").assert_outcomes(xfailed=1)


def test_a_model_built_on_the_meta_device_is_predicted_the_same(repo):
    repo.write("""
        def test_meta(neuralpower):
            built = neuralpower.build(small)
            assert next(built.parameters()).is_meta
            meta, real = neuralpower.predict(built, image()), neuralpower.predict(small(), image())
            assert meta.layers == real.layers
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


def test_samples_in_the_marker_beat_the_guess(repo):
    repo.write("""
        import torch

        @pytest.mark.parametrize("per_sample", [
            pytest.param(False, marks=pytest.mark.energy_budget(mj=1e-6, per="sample")),
            pytest.param(True, marks=pytest.mark.energy_budget(mj=1e-6, per="sample", samples=2)),
        ])
        def test_time_first(neuralpower, per_sample):
            neuralpower.predict(torch.nn.LSTM(32, 64).eval(), torch.randn(100, 2, 32))
    """)
    text = repo.run("--np-platform=titanx").stdout.str()
    guessed, said = re.findall(r"predicted  ([\d.e-]+) mJ per sample", text)
    assert float(said) == pytest.approx(50 * float(guessed), rel=0.02)


def test_a_closer_budget_for_the_platform_overrides_a_wider_one_for_all(repo):
    repo.write("""
        @pytest.mark.energy_budget(uj=1)
        class TestSmall:
            @pytest.mark.energy_budget(j=1000, platform="titanx")
            def test_loosened(self, neuralpower):
                neuralpower.predict(small(), image())
    """)
    repo.run("--np-platform=titanx").assert_outcomes(passed=1)


@pytest.mark.parametrize("where", ["fixture", "body"])
def test_a_marker_added_while_the_test_runs_counts(repo, where):
    add = "request.node.add_marker(pytest.mark.energy_budget(uj=1))"
    repo.write(f"""
        @pytest.fixture
        def tight(request):
            {add if where == "fixture" else "pass"}

        def test_late(request, tight, neuralpower):
            {add if where == "body" else "pass"}
            neuralpower.predict(small(), image())
    """)
    repo.run("--np-platform=titanx").assert_outcomes(failed=1)


def test_only_the_last_attempt_of_a_rerun_counts(repo, pytester):
    pytester.makeconftest("""
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                item._initrequest()
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True
    """)
    repo.write("""
        attempts = []

        @pytest.mark.energy_budget(uj=1)
        def test_flaky(neuralpower):
            attempts.append(1)
            assert len(attempts) == 1
            neuralpower.predict(small(), image())
    """)
    result = repo.run("--np-platform=titanx", "--junit-xml=report.xml", "-o", "junit_family=xunit1")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("OVER*")
    assert "neuralpower.energy_mj" not in (pytester.path / "report.xml").read_text()


def test_a_module_marker_leaves_doctests_alone(repo):
    repo.write('''
        pytestmark = pytest.mark.energy_budget(j=1000)

        def double(x):
            """
            >>> double(2)
            4
            """
            return 2 * x

        def test_one(neuralpower):
            neuralpower.predict(small(), image())
    ''')
    repo.run("--np-platform=titanx", "--doctest-modules").assert_outcomes(passed=2)


def test_a_unittest_case_is_guarded_through_an_autouse_fixture(repo):
    repo.write("""
        import unittest

        class TestSmall(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def power(self, neuralpower):
                self.neuralpower = neuralpower

            @pytest.mark.energy_budget(uj=1)
            def test_small(self):
                self.neuralpower.predict(small(), image())
    """)
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["energy budget exceeded: *"])


def test_a_mistake_in_a_users_fixture_is_one_line_at_its_place(repo):
    repo.write("""
        import torch

        @pytest.fixture
        def prediction(neuralpower):
            return neuralpower.predict(small(), torch.randn(1, 4, 8, 8))

        def test_it(prediction):
            pass
    """)
    result = repo.run("--np-platform=titanx")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_guard.py:*: cannot trace Sequential: *4 channels*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_training_mode_is_noted(repo):
    repo.write("""
        @pytest.mark.parametrize("train", [True, False])
        @pytest.mark.energy_budget(uj=1)
        def test_mode(neuralpower, train):
            neuralpower.predict(small().train(train), image())
    """)
    text = repo.run("--np-platform=titanx").stdout.str()
    assert text.count("note: the model is in training mode") == 1


def test_a_platform_without_power_says_so(repo, pytester):
    titanx = load_platform("titanx")
    families = {
        name: msgspec.structs.replace(family, power=None, energy=None, power_range_w=None)
        for name, family in titanx.families.items()
    }
    msgspec.structs.replace(titanx, power=None, families=families).save(pytester.path / "slow.json")
    repo.write("""
        @pytest.mark.energy_budget(mj=1)
        def test_energy(neuralpower):
            neuralpower.predict(small(), image())

        @pytest.mark.runtime_budget(s=1)
        def test_runtime(neuralpower):
            assert neuralpower.predict(small(), image()).energy_mj is None
    """)
    result = repo.run("--np-platform=slow.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["energy budget: platform 'slow' knows runtime alone*"])


@pytest.mark.parametrize("off", ["no:terminal", "no:neuralpower"])
def test_other_plugins_may_be_switched_off(repo, off):
    repo.write("def test_one(): pass")
    platform = [] if off == "no:neuralpower" else ["--np-platform=titanx"]
    assert repo.run("-p", off, *platform).ret == pytest.ExitCode.OK
