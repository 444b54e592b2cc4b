"""Accuracy measured anew: which recipe, which rows, what is printed and drawn."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_neuralpower import cli, load_platform
from pytest_neuralpower.calibrate.fit.accuracy import (
    accuracy_shown,
    find_calibration,
    measure,
    points,
)
from pytest_neuralpower.calibrate.fit.rows import linear_layer
from pytest_neuralpower.errors import FitError, ProfileError
from pytest_neuralpower.platform.catalog import list_platforms, load_fitted
from pytest_neuralpower.report.accuracy import accuracy_text

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.fit import Fitted

RECIPE = """\
name: toy
device: Toy
mode: eager
hardware: {peak_gflops: 1000, bandwidth_gbs: 100}
sources:
  - {profile: profile.csv, title: Our own rows}
"""


def write_rows(path: Path, rate: float, count: int = 40) -> None:
    """Products of a device of ``rate`` TFLOP/s, each 5% off up or down."""
    random = np.random.default_rng(0)
    lines = ["# device: Toy", "kind,inputs,weights,outputs,runtime_ms"]
    for row in range(count):
        layer = linear_layer(*random.integers(32, 512, 3).tolist())
        shapes = [
            "x".join(map(str, tensor.shape))
            for tensor in (*layer.inputs, *layer.weights, *layer.outputs)
        ]
        time = (0.02 + layer.cost.flops / (rate * 1e9)) * (1.05 if row % 2 else 0.95)
        lines.append(",".join(["linear", *shapes, repr(time)]))
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkout") / "calibration" / "toy"
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(RECIPE)
    write_rows(path / "profile.csv", 0.5)
    return path


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Fitted:
    return measure(folder)


class TestMeasuring:
    def test_scores_every_candidate_beside_both_baselines(self, fitted: Fitted) -> None:
        found = fitted.platform.accuracy["runtime"]["linear"]
        assert {"physical", "neuralpower"} <= set(found["held_out"])
        assert set(found["baselines"]) == {"flops-only", "roofline"}
        assert found["baselines"]["flops-only"]["mape"] == pytest.approx(5, abs=1.5)

    def test_gives_each_row_as_it_was_predicted_without_its_shape(self, fitted: Fitted) -> None:
        found = list(points(fitted))
        assert len(found) == 40
        error = [abs(each.predicted / each.measured - 1) for each in found]
        chosen = fitted.platform.accuracy["runtime"]["linear"]
        mape = chosen["held_out"][chosen["chosen"]]["mape"]
        assert 100 * np.mean(error) == pytest.approx(mape, abs=0.01)
        assert found[0].group == "linear"
        assert re.fullmatch(r"linear \d+x\d+, \d+x\d+, \d+x\d+", found[0].text)

    def test_makes_intervals_that_hold_what_they_should(self, fitted: Fitted) -> None:
        found = fitted.platform.accuracy["intervals"]["runtime"]["linear"]
        assert 80 <= found["shapes_percent"] <= 100
        assert 1.04 < found["factor"] < 1.15
        assert fitted.platform.intervals is not None
        assert fitted.platform.intervals.runtime.model_error == pytest.approx(
            2.06 * 0.145, abs=1e-3
        )

    def test_takes_the_rows_of_another_profile(self, folder: Path, tmp_path: Path) -> None:
        write_rows(tmp_path / "slow.csv", 0.05)
        slow = measure(folder, profile=tmp_path / "slow.csv")
        assert sum(each.measured for each in points(slow)) > 5 * 40 * 0.05
        assert [each["title"] for each in slow.platform.provenance["sources"]] == ["slow.csv"]

    def test_of_too_few_rows_is_refused(self, folder: Path, tmp_path: Path) -> None:
        write_rows(tmp_path / "few.csv", 0.5, count=2)
        with pytest.raises(FitError, match="toy, linear: "):
            measure(folder, profile=tmp_path / "few.csv")


class TestCommand:
    @pytest.fixture
    def run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., tuple[int, str, str]]:
        """Run ``neuralpower accuracy``: exit code, standard output, standard error."""

        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["neuralpower", "accuracy", *arguments])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            captured = capsys.readouterr()
            return int(stopped.value.code or 0), captured.out, captured.err

        return run

    def test_prints_the_tables_and_draws_the_page(
        self, run: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
    ) -> None:
        code, out, err = run(str(folder), "--html", str(tmp_path / "a.html"))
        assert (code, err) == (0, f"wrote {tmp_path / 'a.html'}: predicted against measured\n")
        assert out.startswith("toy: layers held out by shape")
        assert "roofline" in out
        assert (tmp_path / "a.html").stat().st_size > 1_000_000  # plotly's script is inside

    def test_of_no_recipe_is_one_line_and_exit_code_2(
        self, run: Callable[..., tuple[int, str, str]], tmp_path: Path
    ) -> None:
        code, out, err = run(str(tmp_path))
        assert (code, out) == (2, "")
        assert err.startswith("neuralpower: no recipe of ")
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("option", "message"),
        [("--html", "there is no folder"), ("--networks", "no file of measured networks")],
    )
    def test_of_a_wrong_path_is_one_line_and_exit_code_2(
        self,
        run: Callable[..., tuple[int, str, str]],
        folder: Path,
        tmp_path: Path,
        option: str,
        message: str,
    ) -> None:
        code, out, err = run(str(folder), option, str(tmp_path / "none" / "file"))
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


class TestFinding:
    def test_takes_a_folder_or_a_name_in_the_checkout(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert find_calibration(str(folder)) == folder
        monkeypatch.chdir(folder.parent.parent)
        assert find_calibration("toy") == Path("calibration/toy")

    def test_says_where_it_looked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ProfileError) as found:
            find_calibration("titanx")
        text = str(found.value)
        assert "calibration/titanx/recipe.yaml" in text
        assert "neuralpower platforms titanx" in text
        assert "\n" not in text
        with pytest.raises(ProfileError, match=r"neuralpower platforms$"):
            find_calibration("nope")


class TestText:
    def test_has_the_figures_that_were_asked_for(self, fitted: Fitted) -> None:
        text = accuracy_text("toy", fitted.platform.accuracy)
        head = next(line for line in text.splitlines() if "MAPE" in line)
        assert re.split(r"\s{2,}", head.strip()) == [
            "MAPE", "median", "RMSPE", "bias", "in sum", "within 5%", "10%", "20%",
        ]  # fmt: skip
        assert "\nlinear: 40 rows of 40 shapes\n" in text
        for estimator in ("physical", "neuralpower", "flops-only", "roofline"):
            assert re.search(rf"^  {estimator}( \*)? .*%$", text, re.MULTILINE)
        assert len(re.findall(r"^  \S+ \* ", text, re.MULTILINE)) == 1
        assert re.search(r"^runtime +linear +1\.\d\d +[\d.]+% +[\d.]+%$", text, re.MULTILINE)
        assert "Whole networks" not in text

    @pytest.mark.parametrize("name", list_platforms())
    def test_fits_a_terminal_of_100_columns(self, name: str) -> None:
        accuracy = getattr(load_platform(name), "accuracy", {})
        if "runtime" in accuracy:
            assert max(map(len, accuracy_text(name, accuracy).splitlines())) <= 100

    def test_says_of_networks_how_far_off_they_are_and_how_many_are_near(self) -> None:
        text = accuracy_text("titanx-tf", load_fitted("titanx-tf").accuracy)
        assert re.search(r"^runtime( +[+-]?[\d.]+%){8}$", text, re.MULTILINE)
        assert re.search(r"^energy( +[+-]?[\d.]+%){8}$", text, re.MULTILINE)

    def test_says_whose_power_it_is(self) -> None:
        text = accuracy_text("gtx1080ti", load_fitted("gtx1080ti").accuracy)
        assert "Power, not measured here: of devices that were metered, each left out" in text
        assert re.search(r"^NVIDIA H200 \(SXM\) +1\d\.\d%$", text, re.MULTILINE)

    def test_draws_predicted_against_measured_in_one_file(
        self, fitted: Fitted, tmp_path: Path
    ) -> None:
        from pytest_neuralpower.report.charts import accuracy_figure, write_page

        figure = accuracy_figure(list(points(fitted)), platform="toy")
        (trace,) = [each for each in figure.data if each.mode == "markers"]
        assert (trace.name, len(trace.x)) == ("linear (40)", 40)
        assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
        write_page(figure, tmp_path / "a.html")
        html = (tmp_path / "a.html").read_text(encoding="utf-8")
        assert not re.search(r"<(script|link)[^>]+(src|href)=", html)

    def test_shows_what_was_not_shipped_and_the_rows_set_apart(self, fitted: Fitted) -> None:
        accuracy = dict(fitted.platform.accuracy)
        linear = accuracy["runtime"]["linear"]
        scores = {"physical": linear["held_out"]["physical"], "tree": {"refused": "too few"}}
        split = {"trained": 30, "judged": 10, "chosen": "physical", "scores": scores}
        text = accuracy_text(
            "toy", {**accuracy, "not_shipped": {"pool": {**linear, "split": split}}}
        )
        assert "Runtime of families that do not ship" in text
        assert "\npool: fitted to 30 rows, judged on 10\n" in text
        assert re.search(r"^  physical \* +[\d.]+%", text, re.MULTILINE)
        assert "\n  tree: refused, too few\n" in text


class TestEnergy:
    @pytest.fixture(scope="class")
    @staticmethod
    def measured(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
        """Rows that draw 30 W and a little more the more they compute."""
        path = tmp_path_factory.mktemp("energy")
        (path / "recipe.yaml").write_text(RECIPE)
        write_rows(path / "profile.csv", 0.5)
        head, names, *rows = (path / "profile.csv").read_text().splitlines()
        powered = [f"{row},{30 + number % 3}" for number, row in enumerate(rows)]
        (path / "profile.csv").write_text("\n".join([head, f"{names},power_w", *powered]))
        return measure(path)

    def test_is_judged_beside_the_paper_and_both_baselines(self, measured: Fitted) -> None:
        found = accuracy_shown(measured)["energy"]["linear"]
        assert found["chosen"] in found["held_out"]
        assert "neuralpower" in found["held_out"]
        assert set(found["baselines"]) == {"flops-only", "roofline"}
        assert found["held_out"][found["chosen"]]["mape"] < 12
        assert "\nEnergy\n" in accuracy_text("toy", accuracy_shown(measured))

    def test_of_rows_without_power_is_not_there(self, fitted: Fitted) -> None:
        assert "energy" not in accuracy_shown(fitted)
