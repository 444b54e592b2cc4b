"""Print the errors of the platforms fitted to public tables, beside what they were to reach.

python experiments/public_platforms.py [PART ...]

Parts: neusight, a100_boards, deepbench, intervals, h200, cpu, networks, power; all by default.
Every figure is of rows that the estimator did not see: folds with no configuration on both sides,
or, of NeuSight's fully connected layers, its test rows. Needs the public tables (NEURALPOWER_DATA,
or ../shared/data beside the repository) and the extra ``calibrate``; takes some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from msgspec import structs
from tabulate import tabulate

from pytest_neuralpower import list_platforms, load_platform, predict
from pytest_neuralpower.calibrate.fit.designs import Design, power_makers, runtime_makers
from pytest_neuralpower.calibrate.fit.fit import fit_directory, read_rows
from pytest_neuralpower.calibrate.fit.power_prior import fit_power_prior, read_metered
from pytest_neuralpower.calibrate.fit.readers import data_root, neusight_linear
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators import NeuralPowerPolynomial
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.selection import Score, grouped_folds, held_out

sys.path.insert(0, str(Path(__file__).parent))
from cpu_networks import NETWORKS, meta_call

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import Row

REPOSITORY = Path(__file__).parents[1]


class Line(NamedTuple):
    """One row of the table: percentages, ``reach`` the most that was aimed at."""

    what: str
    got: float
    reach: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        if self.reach is None:
            return [self.what, "", f"{self.got:.1f}%", "", self.note]
        reached = "reached" if abs(self.got) <= self.reach else "NOT reached"
        return [self.what, f"{self.reach:g}%", f"{self.got:.1f}%", reached, self.note]


class Table:
    """Rows of one family of a platform's recipe, with their columns."""

    def __init__(
        self, data: Path, platform: str, family_name: str, title: str = "", **options: Any
    ) -> None:
        recipe = read_recipe(REPOSITORY / "calibration" / platform)
        sources = [
            structs.replace(source, options={**source.options, **options})
            for source in recipe.sources
            if title in str(source.title)
        ]
        found, _ = read_rows(structs.replace(recipe, sources=tuple(sources)), data)
        self.recipe: Recipe = recipe
        self.family = family_name
        self.rows: list[Row] = [row for row in found if family(row.layer) == family_name]
        self.values = columns(family_name, [row.layer for row in self.rows])
        self.runtime = np.array([row.runtime_ms for row in self.rows])
        self.power = np.array([row.power_w or np.nan for row in self.rows])

    def predicted(self, quantity: str) -> np.ndarray:
        """Held-out predictions of the estimator that the shipped platform has."""
        accuracy = shipped(self.recipe.name)
        key = {"runtime": "runtime", "power": "layer_power", "energy": "layer_energy"}[quantity]
        chosen = accuracy[key][self.family]["chosen"]
        design, hardware = self.recipe.designs.get(self.family, Design()), self.recipe.hardware
        target, values = self.runtime, self.values
        if quantity == "power":
            maker = power_makers(self.family, hardware)[chosen]
            target, values = self.power, {**values, "runtime_ms": self.runtime}
        else:
            makers = runtime_makers(self.family, design, hardware, quantity=quantity)
            maker = makers[chosen]
            target = self.runtime if quantity == "runtime" else self.runtime * self.power
        configurations = [row.layer.configuration for row in self.rows]
        fold = grouped_folds(configurations, 5)
        return held_out(maker, values, target, fold, configurations)

    def score(self, quantity: str = "runtime") -> Score:
        target = {
            "runtime": self.runtime, "power": self.power, "energy": self.runtime * self.power,
        }[quantity]  # fmt: skip
        return Score.of(self.predicted(quantity), target)


def shipped(name: str) -> Mapping[str, Any]:
    """Held-out scores that a shipped platform carries; none where it is an analytic model."""
    return getattr(load_platform(name), "accuracy", {})


def accuracy_of(name: str, data: Path) -> Mapping[str, Any]:
    """The same; of a platform that is not shipped those of a fit made now."""
    if name in list_platforms():
        return shipped(name)
    return fit_directory(REPOSITORY / "calibration" / name, data_root=data).accuracy


def neusight(data: Path) -> Iterator[Line]:
    """Convolutions by fifths, fully connected layers from training to test rows, and the others."""
    reaches = {
        "t4": (12, 13),
        "v100": (12, 11),
        "p4": (16, None),
        "a100": (16, 6),
        "p100": (16, 15),
    }
    judged = {
        "ignored": "rows as published, their table's growing overhead ignored",
        "added": "rows as published, the overhead of their place added",
        "removed": "overhead taken off",
    }
    for platform, (conv, linear) in reaches.items():
        found = accuracy_of(platform, data)["runtime"]
        for how, text in judged.items():
            mape = found["conv"]["overhead"]["scores"][how]["mape"]
            yield Line(f"{platform} conv, {text}", mape, conv, found["conv"]["chosen"])
        if linear is not None:
            split = found["linear"]["split"]
            scores = {name: each.get("mape") for name, each in split["scores"].items()}
            others = ", ".join(f"{name} {each}%" for name, each in scores.items())
            what = f"{platform} linear, {split['trained']} training rows to {split['judged']} test"
            yield Line(what, scores[split["chosen"]], linear, f"{split['chosen']} ({others})")
        for name, reach in (("elementwise", 1), ("activation", 1), ("norm", 10), ("softmax", 10)):
            each = found[name]
            mape = each["held_out"][each["chosen"]]["mape"]
            yield Line(f"{platform} {name}", mape, reach, each["chosen"])


def a100_boards(data: Path) -> Iterator[Line]:
    """The A100's training rows are of its 40 GB board; test rows there are of both boards."""
    recipe = read_recipe(REPOSITORY / "calibration" / "a100")
    make = runtime_makers("linear", recipe.designs["linear"], recipe.hardware)["boosted"]
    path = data / "neusight" / "linear_latency_ms.csv.gz"

    def rows(device: str, split: str) -> tuple[list[Row], dict[str, np.ndarray], np.ndarray]:
        found = neusight_linear(path, {"select": {"Device": device, "split": split}})
        values = columns("linear", [row.layer for row in found])
        return found, values, np.array([row.runtime_ms for row in found])

    seen, values, runtime = rows("NVIDIA A100-PCIE-40GB", "train")
    fitted = make().fit(values, runtime, groups=[row.shape_group for row in seen])
    for device in ("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"):
        _, unseen, measured = rows(device, "test")
        score = Score.of(fitted.predict(unseen), measured)
        yield Line(f"a100 linear, test rows of {device}", score.mape, 6, f"bias {score.bias:+.1f}%")


def deepbench(_: Path) -> Iterator[Line]:
    for platform in ("titanx", "titanx-pascal", "gtx1080ti"):
        found = shipped(platform)["runtime"]
        for family_name, reach in (("conv", 14), ("linear", 16), ("matmul", 16)):
            each = found[family_name]
            aim = reach if platform == "titanx" else None
            mape = each["held_out"][each["chosen"]]["mape"]
            yield Line(f"{platform} {family_name}, grouped by shape", mape, aim)


def intervals(_: Path) -> Iterator[Line]:
    """Share of held-out shapes inside their 90% interval, by platform and family."""
    for platform in list_platforms():
        accuracy = shipped(platform)
        for name, each in accuracy.get("intervals", {}).get("runtime", {}).items():
            share = each["shapes_percent"]
            note = "inside 85 to 95%" if 85 <= share <= 95 else "NOT inside 85 to 95%"
            yield Line(f"{platform} {name}, held by 90% intervals", share, None, note)


def h200(data: Path) -> Iterator[Line]:
    gemm = Table(data, "h200", "linear")
    long = gemm.runtime > 0.02
    time, target = gemm.predicted("runtime"), gemm.runtime * gemm.power
    yield Line("h200 linear > 20 us, time", Score.of(time[long], gemm.runtime[long]).mape, 3)
    if "layer_energy" in shipped("h200"):
        energy = gemm.predicted("energy")
    else:
        energy = gemm.predicted("power") * time
    power = (energy / time)[long]
    yield Line("h200 linear > 20 us, power", Score.of(power, gemm.power[long]).mape, 5)
    yield Line("h200 linear > 20 us, energy", Score.of(energy[long], target[long]).mape, 6)


def cpu(data: Path) -> Iterator[Line]:
    reaches = {"cpu-broadwell": (9, 12, 3), "cpu-raptorlake": (14, 40, 4)}
    for platform, limits in reaches.items():
        for family_name, reach in zip(("conv", "linear", "pool"), limits, strict=True):
            table = Table(data, platform, family_name)
            if "energy" in _learnt(platform, family_name):
                energy = table.predicted("energy")
            else:
                energy = table.predicted("power") * table.predicted("runtime")
            score = Score.of(energy, table.runtime * table.power)
            note = f"least {energy.min():.3g} mJ"
            yield Line(f"{platform} {family_name}, energy", score.mape, reach, note)
            yield Line(f"{platform} {family_name}, energy in total", score.total, 3)
            aim = 12 if (platform, family_name) == ("cpu-raptorlake", "linear") else None
            yield Line(f"{platform} {family_name}, time", table.score().mape, aim)


def _learnt(platform: str, family_name: str) -> Sequence[str]:
    accuracy = shipped(platform)
    return [
        quantity
        for quantity in ("power", "energy")
        if family_name in accuracy.get(f"layer_{quantity}", {})
    ]


def networks(data: Path) -> Iterator[Line]:
    """Networks of the same repository, none of their rows fitted; and the paper's Lasso there."""
    for network in NETWORKS:
        model, example = meta_call(network)
        found = predict(model, example, platform=network.platform)
        assert found.energy_mj is not None
        assert found.runtime_ms is not None
        off = 100 * (found.runtime_ms / network.measured_ms - 1)
        note = f"{found.runtime_ms:.0f} ms, measured {network.measured_ms:.0f}"
        yield Line(f"{network.platform} {network.name}, time off", off, None, note)
        joules = found.energy_mj / 1e3
        note = f"{joules:.1f} J; {found.share('extrapolated'):.0%} of it extrapolated"
        if network.measured_j is not None:
            off = 100 * (joules / network.measured_j - 1)
            yield Line(f"{network.platform} {network.name}, energy off", off, None,
                       f"{note}, measured {network.measured_j:.1f}")  # fmt: skip
        conv = Table(data, network.platform, "conv")
        lasso = NeuralPowerPolynomial("conv", "energy").fit(conv.values, conv.runtime * conv.power)
        layers = [each.layer for each in found.layers if family(each.layer) == "conv"]
        alone = float(lasso.predict(columns("conv", layers)).sum()) / 1e3
        note = f"the paper's Lasso on the same rows says {alone:.4g} J of its convolutions"
        yield Line("", float("nan"), None, note)


def power(data: Path) -> Iterator[Line]:
    found = fit_power_prior(read_metered(REPOSITORY / "calibration", data))
    for name, error in found.left_out.items():
        yield Line(f"power of {name} by the others", error)
    yield Line("mean of these", float(np.mean(list(found.left_out.values()))), 15.0)


PARTS: dict[str, Callable[[Path], Iterator[Line]]] = {
    each.__name__: each
    for each in (neusight, a100_boards, deepbench, intervals, h200, cpu, networks, power)
}


def main(names: Sequence[str]) -> int:
    try:
        data = data_root(REPOSITORY)
    except ProfileError as error:
        print(f"skipped: {error}")
        return 0
    for name in names or PARTS:
        rows = [line.cells() for line in PARTS[name](data)]
        headers = ("MAPE of held-out rows", "reach", "got", "", "")
        print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True), flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
