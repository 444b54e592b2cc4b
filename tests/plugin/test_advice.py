"""A failing budget test says what to do about it, and changes nothing."""

import re
import shlex
import sys

import pytest

pytest.importorskip("torch_pruning")

NETS = """
    from torch import nn

    def narrow(width=33):
        layers, wide = [], 3
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(wide, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            wide = out
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10)
        ).eval()

    def deep(width=33):
        layers, wide = [], 3
        for _ in range(8):
            layers += [nn.Conv2d(wide, width, 3, padding=1), nn.ReLU()]
            wide = width
        return nn.Sequential(*layers, nn.Conv2d(wide, 4, 1))

    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(x.view(len(x), 2, 4, 8, 8).transpose(1, 2).reshape(len(x), 8, 8, 8))
"""

FAILING = """
    import pytest, torch
    from nets import deep, narrow

    @pytest.mark.{marker}
    def test_narrow(neuralpower):
        model = {model}
        neuralpower.predict(model, torch.empty(8, 3, 64, 64))
        assert model[0].out_channels == 33
"""


def lines_of(result):
    return "\n".join(result.stdout.lines)


def run(pytester, marker, *, model="neuralpower.build(narrow, width=33)", platform="titanx"):
    pytester.makepyfile(nets=NETS)
    pytester.makepyfile(FAILING.format(marker=marker, model=model))
    return pytester.runpytest(f"--np-platform={platform}", "-p", "no:cacheprovider")


class TestAFailingBudget:
    def test_names_widths_to_change_with_what_they_save(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=20)"))
        assert re.search(
            r"shrink 4 66 -> 64 \(\+2 coupled\): energy -\d+\.\d%, runtime -\d+\.\d%, "
            r"parameters -2,976; \w+",
            text,
        )
        assert "still over the budget of 20.0 mJ" in text

    def test_says_when_advice_alone_meets_it(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=142)"))
        assert "; within the budget of 142 mJ" in text
        assert "alone meets the budget" in text

    def test_advises_for_a_runtime_budget(self, pytester):
        text = lines_of(run(pytester, "runtime_budget(us=100)"))
        assert "still over the budget of 100 µs" in text

    def test_on_a_fitted_platform_loads_nothing_of_the_array(self, pytester):
        pytester.makeconftest("""
            import sys

            def pytest_unconfigure():
                print("loaded", *sorted(name for name in sys.modules if "neuralpower" in name))
        """)
        pytester.makepyfile(nets=NETS)
        pytester.makepyfile(FAILING.format(marker="energy_budget(mj=1)", model="deep()"))
        text = lines_of(pytester.runpytest_subprocess("--np-platform=titanx"))
        assert "pytest_neuralpower.compress.advice" in text
        assert "pytest_neuralpower.eyeriss" not in text

    def test_prints_at_most_five_lines_of_advice(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=1)", model="deep()"))
        assert len(re.findall(r"^    (?:shrink|expand) ", text, re.MULTILINE)) == 5
        assert "all 7 shrunk together" in text

    def test_gives_commands_that_run(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=20)"))
        command = re.search(r"all advice: neuralpower (advise .*)", text)[1]
        assert command == (
            "advise nets.py:narrow --arg width=33 --input 8,3,64,64 --platform titanx --mj 20"
        )
        assert "prune to it: neuralpower prune nets.py:narrow --arg width=33 " in text
        assert (
            'where inputs.pt is real inputs in one batch: torch.save(inputs, "inputs.pt")' in text
        )
        script = "from pytest_neuralpower.cli import main; main()"
        again = pytester.run(sys.executable, "-c", script, *shlex.split(command))
        assert again.ret == 0
        assert "shrink 4 66 -> 64" in lines_of(again)

    def test_leaves_the_model_to_be_named_where_it_cannot_know(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=20)", model="narrow()"))
        assert "neuralpower advise MODEL --input 8,3,64,64 --platform titanx --mj 20" in text
        assert "where MODEL is file.py:function that builds it, inputs.pt is real inputs" in text

    def test_asks_for_the_call_where_the_budget_is_per_sample(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=2, per='sample')"))
        assert "--mj 16" in text

    def test_changes_no_model(self, pytester):
        run(pytester, "energy_budget(mj=20)").assert_outcomes(failed=1)

    def test_works_on_a_platform_that_knows_energy_alone(self, pytester):
        text = lines_of(run(pytester, "energy_budget(mj=1)", platform="eyeriss"))
        assert "advice, predicted and not measured:" in text
        assert "neuralpower prune nets.py:narrow" in text


class TestAdviceThatCannotBeGiven:
    def test_for_a_power_budget_is_one_line_that_says_why(self, pytester):
        text = lines_of(run(pytester, "power_budget(w=1)"))
        assert "advice: none for power" in text
        assert "neuralpower prune" not in text

    def test_without_torch_pruning_names_the_extra(self, pytester, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
        text = lines_of(run(pytester, "energy_budget(mj=20)"))
        assert "advice: none, finding a model's channel groups needs torch-pruning" in text
        assert "pip install 'pytest-neuralpower[prune]'" in text
        assert "energy budget exceeded" in text

    def test_for_an_unknown_graph_is_one_line(self, pytester):
        pytester.makepyfile(nets=NETS)
        pytester.makepyfile(
            """
            import pytest, torch
            from nets import Shuffled

            @pytest.mark.energy_budget(uj=1)
            def test_shuffled(neuralpower):
                neuralpower.predict(Shuffled(), torch.empty(1, 3, 8, 8))
            """
        )
        text = lines_of(pytester.runpytest("--np-platform=titanx", "-p", "no:cacheprovider"))
        assert "no width near a plateau edge saves" in text
        assert "neuralpower advise nets.py:Shuffled --input 1,3,8,8" in text

    def test_for_a_recurrent_layer_takes_no_time(self, pytester):
        pytester.makepyfile(
            """
            import pytest, torch

            @pytest.mark.energy_budget(uj=1)
            def test_gru(neuralpower):
                model = neuralpower.build(torch.nn.GRU, 64, 64, batch_first=True).eval()
                neuralpower.predict(model, torch.empty(1, 1000, 64))
            """
        )
        text = lines_of(pytester.runpytest("--np-platform=titanx", "-p", "no:cacheprovider"))
        assert "advice: none, widths of GRU (the root) cannot be told apart" in text


def test_among_very_many_guarded_tests_there_are_the_commands_alone(pytester):
    pytester.makepyfile(nets=NETS)
    others = """
    @pytest.mark.skip
    @pytest.mark.parametrize("other", range(101))
    def test_other(neuralpower, other): ...
    """
    one = FAILING.format(marker="energy_budget(mj=20)", model="narrow()")
    pytester.makepyfile(one + others)
    text = lines_of(pytester.runpytest("--np-platform=titanx", "-p", "no:cacheprovider"))
    assert "advice: none in a session of 101 other guarded tests: run this alone" in text
    assert "all advice: neuralpower advise" in text


def test_a_kept_budget_prints_no_advice(pytester):
    result = run(pytester, "energy_budget(mj=20000)")
    result.assert_outcomes(passed=1)
    assert "neuralpower advise" not in lines_of(result)
