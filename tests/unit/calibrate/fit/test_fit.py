"""From rows and a recipe to a platform."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec import to_builtins

from pytest_neuralpower import load_platform
from pytest_neuralpower.calibrate.fit.card import card_text
from pytest_neuralpower.calibrate.fit.designs import Design, runtime_makers
from pytest_neuralpower.calibrate.fit.fit import fit_command, fit_directory, fit_rows
from pytest_neuralpower.calibrate.fit.prior import priors_for
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.calibrate.fit.rows import Row, linear_layer, streaming_layer
from pytest_neuralpower.errors import FitError, PlatformError, ProfileError
from pytest_neuralpower.estimators import Bounded
from pytest_neuralpower.estimators.features import FAMILIES, columns
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.estimators.selection import select
from pytest_neuralpower.platform.prediction import INFERRED

if TYPE_CHECKING:
    from pytest_neuralpower.platform.price import FittedPlatform

RECIPE = """\
name: toy
device: Toy
mode: eager
hardware: {peak_gflops: 1000, bandwidth_gbs: 100, multiprocessors: 40, limit_w: 250}
sources:
  - {profile: profile.csv, title: Our own rows}
"""


HARDWARE = {
    "peak_gflops": 1000.0, "bandwidth_gbs": 100.0, "multiprocessors": 40, "limit_w": 250.0,
}  # fmt: skip


def device(layer_flops: float, moved: float) -> tuple[float, float]:
    """Runtime (ms) and power (W) of a simple device."""
    time = 0.02 + layer_flops / 0.7e9 + moved / 60e6
    return time, 40 + 120 * layer_flops / (time * 1e9) + 50 * moved / (time * 1e8)


def measured(*, power: bool = False) -> list[Row]:
    random = np.random.default_rng(0)
    rows = []
    for line in range(2, 62):
        size = tuple(random.integers(16, 512, 3).tolist())
        layers = [linear_layer(*size), streaming_layer("activation", "relu", [size[:2]], size[:2])]
        for layer in layers:
            time, watts = device(layer.cost.flops, layer.cost.bytes_moved)
            rows.append(Row(layer, time, watts if power else None, line))
    return rows


def recipe(folder: Path = Path(), **fields: object) -> Recipe:
    return Recipe("toy", "eager", "Toy", hardware=HARDWARE, folder=folder, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> FittedPlatform:
    return fit_rows(measured(), recipe()).platform


class TestPlatform:
    def test_predicts_what_was_measured(self, fitted: FittedPlatform) -> None:
        assert set(fitted.families) == {"linear", "activation"}
        for name in fitted.families:
            assert fitted.accuracy["runtime"][name]["held_out"]["physical"]["mape"] < 12
        layer = linear_layer(100, 200, 300)
        expected, _ = device(layer.cost.flops, layer.cost.bytes_moved)
        found = fitted.predict([layer])
        assert found.runtime_ms == pytest.approx(expected, rel=0.1)
        assert found.energy_mj is None

    def test_reports_every_candidate(self, fitted: FittedPlatform) -> None:
        accuracy = fitted.accuracy["runtime"]["linear"]
        assert set(accuracy["held_out"]) == {
            *("neuralpower-bounded", "physical", "neuralpower", "neuralpower-relative"),
            *("tree", "boosted"),
        }
        assert "60 rows, 80 are needed" in accuracy["held_out"]["boosted"]["refused"]
        assert accuracy["rows"] == 60
        assert accuracy["chosen"] == "neuralpower-relative"  # the toy has no tiles to fill

    def test_learns_power_from_rows_that_have_it(self) -> None:
        fitted = fit_rows(measured(power=True), recipe()).platform
        layer = linear_layer(100, 200, 300)
        _, watts = device(layer.cost.flops, layer.cost.bytes_moved)
        assert fitted.predict([layer]).power_w == pytest.approx(watts, rel=0.1)
        # Learnt as energy, which errs less than power times the runtime here.
        accuracy = fitted.accuracy["layer_energy"]["linear"]
        assert accuracy["held_out"][accuracy["chosen"]]["mape"] < 2

    def test_carries_the_papers_estimators_beside_the_chosen_ones(
        self, fitted: FittedPlatform
    ) -> None:
        paper = fitted.families["linear"].neuralpower
        assert paper is not None
        assert paper.power is None
        assert fitted.families["activation"].neuralpower is None
        scores = fitted.accuracy["neuralpower"]["linear"]["runtime"]
        assert scores["degree"] == paper.runtime.degree_
        assert scores["terms"] == len(paper.runtime.coefficients_) > 0
        held_out = fitted.accuracy["runtime"]["linear"]["held_out"]["neuralpower"]
        assert scores["held_out"] == held_out
        assert scores["fitted"]["rmspe"] < 30

    def test_carries_the_papers_power_where_all_rows_have_it(self) -> None:
        fitted = fit_rows(measured(power=True), recipe()).platform
        paper = fitted.families["linear"].neuralpower
        assert paper is not None
        assert paper.power is not None
        assert paper.power.degree_ in (1, 2)
        layer = linear_layer(100, 200, 300)
        _, watts = device(layer.cost.flops, layer.cost.bytes_moved)
        assert fitted.by_neuralpower().predict([layer]).power_w == pytest.approx(watts, rel=0.1)
        assert fitted.accuracy["neuralpower"]["linear"]["power"]["held_out"]["rmspe"] < 10

    def test_the_card_says_why_and_shows_the_paper_beside_it(self, fitted: FittedPlatform) -> None:
        card = card_text(fitted)
        assert "## Chosen, and NeuralPower beside it" in card
        row = next(
            line
            for line in card.splitlines()
            if re.match(r"\| linear +\| \S+ +\| the least MAPE", line)
        )
        scores = fitted.accuracy["neuralpower"]["linear"]["runtime"]
        assert f"{scores['held_out']['rmspe']:.1f}%" in row
        assert f"{scores['fitted']['rmspe']:.1f}%" in row

    def test_knows_the_range_it_was_fitted_on(self, fitted: FittedPlatform) -> None:
        ranges = fitted.families["linear"].ranges
        assert ranges["m"][0] >= 16
        assert ranges["k"][1] < 512

    def test_corrects_what_other_devices_show_and_compares_with_the_paper_as_published(
        self, fitted: FittedPlatform
    ) -> None:
        found = fitted.families["linear"].runtime
        assert isinstance(found, Bounded)
        assert found.ranges_["m"] == fitted.families["linear"].ranges["m"]
        assert found.ceilings == Ceilings.of(HARDWARE)
        makers = runtime_makers("linear", Design(), HARDWARE)
        rows = [row for row in measured() if row.layer.kind == "linear"]
        values = columns("linear", [row.layer for row in rows])
        runtime = np.array([row.runtime_ms for row in rows])
        groups = [row.shape_group for row in rows]
        paper = select({"neuralpower": makers["neuralpower"]}, values, runtime, groups)
        scores = fitted.accuracy["runtime"]["linear"]["held_out"]
        assert scores["neuralpower"]["mape"] == paper.scores["neuralpower"]["mape"]

    def test_prices_other_kinds_as_other_devices_run_them(self, fitted: FittedPlatform) -> None:
        priors = priors_for(
            "Toy", HARDWARE, "float32", calibration=recipe().folder.parent, data_root=None
        )
        assert set(fitted.inferred) == set(FAMILIES) - set(fitted.families)
        for name, found in fitted.inferred.items():
            assert found.inner is None
            assert to_builtins(found.prior) == to_builtins(priors[name])
        layer = streaming_layer("norm", "layer_norm", [(64, 512)], (64, 512))
        (priced,) = fitted.predict([layer]).layers
        assert (priced.estimator, priced.flags) == ("prior", (INFERRED,))
        roofline = 0.004 + layer.cost.bytes_moved / 100e6
        assert roofline < priced.runtime_ms < 5 * roofline

    def test_is_the_same_each_time(self, fitted: FittedPlatform) -> None:
        assert fit_rows(measured(), recipe()).platform.to_json() == fitted.to_json()


class TestRefusals:
    def test_no_rows(self) -> None:
        with pytest.raises(FitError, match="no measured rows"):
            fit_rows([], recipe())

    def test_a_bad_row_by_platform_family_and_line(self) -> None:
        rows = measured()
        rows[4] = Row(rows[4].layer, float("nan"), None, rows[4].line)
        with pytest.raises(FitError, match=r"^toy, linear: .* at line 4: remove"):
            fit_rows(rows, recipe())

    def test_a_family_measured_in_one_shape(self) -> None:
        rows = [
            Row(linear_layer(batch, 64, 64), 0.1 * batch, None, batch) for batch in range(1, 40)
        ]
        with pytest.raises(FitError, match="toy, linear: 1 different layer shapes, 3 are needed"):
            fit_rows(rows, recipe())


class TestDirectory:
    def write(self, folder: Path, text: str = RECIPE) -> Path:
        (folder / "recipe.yaml").write_text(text)
        lines = ["# device: Toy", "kind,op,inputs,weights,outputs,runtime_ms"]
        for row in measured():
            tensors = [
                ";".join("x".join(map(str, tensor.shape)) for tensor in group)
                for group in (row.layer.inputs, row.layer.weights, row.layer.outputs)
            ]
            lines.append(",".join([row.layer.kind, row.layer.op, *tensors, repr(row.runtime_ms)]))
        (folder / "profile.csv").write_text("\n".join(lines))
        return folder

    def test_its_name_overwrites_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.write(tmp_path)
        (tmp_path / "toy.json").write_text("mine")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PlatformError, match=r"toy\.json is there: name another in --out"):
            fit_command(folder, None)
        assert (tmp_path / "toy.json").read_text() == "mine"

    def test_is_fitted_saved_and_given_a_card(self, tmp_path: Path, fitted: FittedPlatform) -> None:
        path, saved = fit_command(self.write(tmp_path), tmp_path / "toy.json")
        assert path == tmp_path / "toy.json"
        assert load_platform(tmp_path / "toy.json").sha256 == saved.sha256
        assert saved.to_json() == fitted.to_json() | {
            "provenance": {
                "sources": [{"title": "Our own rows", "rows": 120, "left_out": {}}],
                "notes": [],
                "widths": fitted.provenance["widths"],
            }
        }
        card = (tmp_path / "README.md").read_text()
        assert card == card_text(saved)
        assert re.search(r"\| linear +\| neuralpower-relative +\| yes ", card)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("- a", "must be an object, not ['a']"),
            ("name: toy", "'mode' is missing"),
            ("name: toy\nmode: eager", "'device' is missing"),
            (RECIPE + "colour: red", "unknown field 'colour'"),
            ("name: [", "not YAML"),
            (RECIPE.replace("bandwidth_gbs: 100, ", ""), "hardware needs 'bandwidth_gbs'"),
            (
                RECIPE.replace("name: toy", "name: ''"),
                "name must be a string of length >= 1",
            ),
            (
                RECIPE.replace("name: toy", "name: a/b"),
                "name 'a/b' must be a file's name",
            ),
            (re.sub("hardware: .*", "hardware:", RECIPE), "hardware needs 'peak_gflops'"),
            (RECIPE.replace("1000", "fast"), "hardware.peak_gflops must be a number, not 'fast'"),
            (RECIPE.replace("1000", "-1"), "hardware.peak_gflops must be a number above 0, not -1"),
            (
                RECIPE.replace("gbs: 100", "gbs: 0"),
                "bandwidth_gbs must be a number above 0, not 0",
            ),
            (
                RECIPE.replace("{profile", "{file"),
                "source 1 needs a 'profile', or a 'reader' and a 'path'",
            ),
            (
                re.sub("- {.*", "- profile.csv", RECIPE),
                "sources[0] must be an object, not 'profile",
            ),
            (re.sub("- {.*", "profile.csv", RECIPE), "sources must be a list, not 'profile.csv'"),
            (RECIPE + "designs: {conv: [gemm]}", "designs.conv must be an object, not ['gemm']"),
            (RECIPE + "designs: {convs: {}}", "designs: 'convs' is not one of conv, linear, "),
            (RECIPE + "candidates: [forest]", "candidates[0] is 'forest'; allowed: boosted, "),
            (
                RECIPE + "designs: {conv: {candidates: [forest]}}",
                "designs.conv.candidates[0] is 'forest'; allowed: boosted, ",
            ),
            (
                RECIPE + "tiers: {runtime: guessed}",
                "tiers.runtime is 'guessed'; allowed: datas",
            ),
            (RECIPE + "power: {watts: -1}", "power.watts must be a number > 0, not -1"),
            (RECIPE + "power: {watts: much}", "power.watts must be a number or null, not 'much'"),
            (RECIPE + "notes: Ours alone.", "notes must be a list, not 'Ours alone.'"),
        ],
    )
    def test_with_a_bad_recipe_is_refused(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(ProfileError) as found:
            read_recipe(self.write(tmp_path, text))
        assert str(found.value).startswith(f"recipe {tmp_path / 'recipe.yaml'}:")
        assert says in str(found.value)
        assert "\n" not in str(found.value)

    def test_with_empty_fields_is_as_one_without_them(self, tmp_path: Path) -> None:
        text = RECIPE + "designs:\npower:\nnotes:\ntiers:\n"
        assert read_recipe(self.write(tmp_path, text)) == read_recipe(self.write(tmp_path))

    def test_is_asked_for_where_a_file_of_it_was_given(self, tmp_path: Path) -> None:
        profile = self.write(tmp_path) / "profile.csv"
        with pytest.raises(ProfileError, match="is a file: give the folder") as it:
            fit_directory(profile)
        assert str(it.value).endswith(str(tmp_path))

    def test_is_not_fitted_for_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        out = tmp_path / "nodir" / "toy.json"
        with pytest.raises(PlatformError, match=r"there is no folder .*nodir; make it first"):
            fit_command(self.write(tmp_path), out)
        assert not out.parent.exists()

    def test_whose_candidates_cannot_predict_a_kind_leaves_one_that_can(
        self, tmp_path: Path
    ) -> None:
        text = RECIPE + "designs: {linear: {candidates: [tree]}, activation: {candidates: [tree]}}"
        found = fit_directory(self.write(tmp_path, text)).accuracy["runtime"]
        for name in ("linear", "activation"):
            assert set(found[name]["held_out"]) == {"neuralpower-bounded", "tree"}

    def test_whose_rows_tell_no_operation_prices_any_of_their_kind(self, tmp_path: Path) -> None:
        profile = self.write(tmp_path) / "profile.csv"
        profile.write_text(profile.read_text().replace("activation,relu,", "activation,,"))
        found = fit_directory(tmp_path)
        layer = streaming_layer("activation", "relu", [(200, 100)], (200, 100))
        expected, _ = device(layer.cost.flops, layer.cost.bytes_moved)
        assert found.predict([layer]).runtime_ms == pytest.approx(expected, rel=0.01)

    def test_whose_source_has_no_title_is_fitted_and_listed(self, tmp_path: Path) -> None:
        text = RECIPE.replace(", title: Our own rows", "")
        _, saved = fit_command(self.write(tmp_path, text), tmp_path / "toy.json")
        assert saved.summary().sources == ("measured rows",)

    def test_without_a_recipe_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ProfileError, match="there is no recipe"):
            fit_directory(tmp_path)

    def test_that_reads_public_tables_needs_to_know_where(self, tmp_path: Path) -> None:
        text = RECIPE.replace("{profile: profile.csv,", "{reader: deepbench_gemm, path: gemm.csv,")
        with pytest.raises(ProfileError, match="say where they are"):
            fit_directory(self.write(tmp_path, text))
        with pytest.raises(ProfileError, match="there is no such table"):
            fit_directory(tmp_path, data_root=tmp_path)

    def test_with_an_unknown_reader_lists_those_there_are(self, tmp_path: Path) -> None:
        text = RECIPE.replace("{profile: profile.csv,", "{reader: mlperf, path: x.csv,")
        with pytest.raises(ProfileError, match="unknown reader 'mlperf'; there are deepbench_conv"):
            fit_directory(self.write(tmp_path, text))
