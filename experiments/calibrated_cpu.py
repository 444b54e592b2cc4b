"""Judge a CPU calibration on real networks that it never saw.

    python experiments/calibrated_cpu.py calibration/NAME --measure 3
    python experiments/calibrated_cpu.py calibration/NAME

The first measures every network of ``real_networks.py`` in three passes on this machine, one
thread, and appends them to ``calibration/NAME/real_networks.csv``; both print how the platform that
the folder's rows give predicts them, beside the faithful NeuralPower model, operations alone and
the roofline, all fitted to the same rows.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from real_networks import BATCHES, NETWORKS, RealNetwork
from tabulate import tabulate

from pytest_neuralpower.calibrate.fit.fit import Fitted, fit_recipe
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.recipe import read_recipe
from pytest_neuralpower.calibrate.fit.rows import NetworkRow, network_rows, usual_probe_ms
from pytest_neuralpower.calibrate.measure.conditions import Conditions
from pytest_neuralpower.calibrate.measure.facts import measure_hardware
from pytest_neuralpower.calibrate.measure.profile_writer import ProfileWriter
from pytest_neuralpower.calibrate.measure.run_trial import on_bench, time_network
from pytest_neuralpower.calibrate.measure.trial import Bench, Trial
from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators import Estimator, NeuralPowerPolynomial
from pytest_neuralpower.estimators.features import family
from pytest_neuralpower.estimators.neuralpower import SIZES
from pytest_neuralpower.estimators.selection import FlopsOnly, Roofline
from pytest_neuralpower.tracing import trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.platform.price import FittedPlatform

#: ms; shorter layers are all dispatch, and one or two per cent of a network's time.
SHORT_MS = 0.1


def label(network: RealNetwork, batch: int) -> str:
    return f"{network.name}, batch {batch}"


def measure(path: Path, passes: int) -> None:
    """Append ``passes`` passes over all networks, each in another order."""
    bench = Bench("cpu", "float32", measure_hardware("cpu", "float32"))
    before = read_profile(path).measurements if path.exists() else ()
    done = max((each.pass_ for each in before), default=0)
    with ProfileWriter(path, provenance={"dtype": "float32"}, dtype="float32") as writer:
        for number in range(done + 1, done + 1 + passes):
            order = np.random.default_rng(number).permutation(len(NETWORKS))
            for network in (NETWORKS[place] for place in order):
                with on_bench(bench):
                    model = network.make()
                    for batch in BATCHES:
                        trial = Trial(label(network, batch), "network", network.name, batch, number)
                        rows = time_network(model, network.inputs(batch), bench, trial=trial)
                        writer.write(trial, rows, Conditions())
                print(f"pass {number}: {network.name}: {rows[-1].runtime_ms:.1f} ms", flush=True)


def traces() -> dict[str, Trace]:
    """Every call, traced on the meta device where the model can be built there."""
    found = {}
    for network in NETWORKS:
        with torch.device("meta"):
            model = network.make()
        for batch in BATCHES:
            found[label(network, batch)] = trace(model, *network.inputs(batch))
    return found


def others(fitted: Fitted) -> Iterator[tuple[str, FittedPlatform]]:
    """Platforms of the same rows with simpler estimators of runtime."""
    hardware = fitted.platform.hardware

    def roofline(_: str) -> Estimator:
        return Roofline(
            peak_gflops=hardware["peak_gflops"], bandwidth_gbs=hardware["bandwidth_gbs"]
        )

    def paper(name: str) -> Estimator | None:
        name = "conv" if name.startswith("conv") else name
        return NeuralPowerPolynomial(name) if name in SIZES else None

    yield "faithful NeuralPower (conv, linear, pool)", _refitted(fitted, paper)
    yield "operations alone", _refitted(fitted, lambda _: FlopsOnly())
    yield "roofline", _refitted(fitted, roofline)


def _refitted(fitted: Fitted, make: Callable[[str], Estimator | None]) -> FittedPlatform:
    families = dict(fitted.platform.families)
    for name, fit in fitted.families.items():
        estimator = make(name)
        if estimator is not None and name in families:
            try:
                estimator.fit(fit.columns, fit.runtime_ms, groups=fit.groups)
            except FitError:  # copies have no operations to count: priced as the platform does
                continue
            families[name] = replace(
                families[name], runtime=estimator, power=None, energy=None, power_range_w=None
            )
    return replace(fitted.platform, families=families, intervals=None)


class Judged(NamedTuple):
    """Predicted and measured time of every network, ms."""

    predicted: np.ndarray
    measured: np.ndarray

    @property
    def mape(self) -> float:
        return float(100 * np.abs(self.predicted / self.measured - 1).mean())

    @property
    def within_10(self) -> float:
        return float(100 * (np.abs(self.predicted / self.measured - 1) <= 0.1).mean())

    @property
    def order(self) -> float:
        """Share of the pairs more than 10% apart that are predicted in the right order, %."""
        right = [
            (self.predicted[i] < self.predicted[j]) == (self.measured[i] < self.measured[j])
            for i, j in itertools.combinations(range(len(self.measured)), 2)
            if abs(np.log(self.measured[i] / self.measured[j])) > np.log(1.1)
        ]
        return float(100 * np.mean(right))


def judge(
    platform: FittedPlatform, calls: Mapping[str, Trace], rows: Mapping[str, NetworkRow]
) -> Judged:
    predicted = [platform.predict(calls[name]).runtime_ms for name in rows]
    return Judged(np.array(predicted), np.array([row.runtime_ms for row in rows.values()]))


def layer_errors(platform: FittedPlatform, rows: Mapping[str, NetworkRow], kind: str) -> np.ndarray:
    """Relative errors of the networks' layers of a kind, depthwise ones among the convolutions."""
    found = [
        row
        for network in rows.values()
        for row, _ in network.layers
        if family(row.layer).split(".")[0] == kind
    ]
    predicted = platform.predict([row.layer for row in found])
    runtime = np.array([row.runtime_ms for row in found])
    error = np.abs(np.array([each.runtime_ms for each in predicted.layers]) / runtime - 1)
    return error[runtime > SHORT_MS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="calibration folder, with recipe and profile")
    parser.add_argument("--measure", type=int, default=0, metavar="PASSES")
    parser.add_argument("--networks", action="store_true", help="a line for every network")
    options = parser.parse_args()
    measured = options.folder / "real_networks.csv"
    if options.measure:
        measure(measured, options.measure)
    fitted = fit_recipe(read_recipe(options.folder))
    platform = fitted.platform
    usual_ms = usual_probe_ms(
        each
        for source in read_recipe(options.folder).sources
        for each in read_profile(options.folder / source.profile).measurements
    )
    if usual_ms:  # one device: the processor here
        usual_ms = {"": next(iter(usual_ms.values()))}
    measurements = read_profile(measured).measurements
    rows = {each.network: each for each in network_rows(measurements, usual_ms=usual_ms)}
    calls = traces()
    table = []
    for name, each in [("this platform", platform), *others(fitted)]:
        judged = judge(each, calls, rows)
        conv = 100 * layer_errors(each, rows, "conv")
        table.append(
            (name, judged.mape, judged.within_10, judged.order, conv.mean(), np.median(conv))
        )
    heads = ("estimator", "network MAPE %", "within 10%", "order %", "conv MAPE %", "conv median %")
    print(tabulate(table, heads, "github", floatfmt=".1f"))
    inside, widths = [], []
    for name, row in rows.items():
        prediction = platform.predict(calls[name])
        interval = prediction.runtime_interval_ms
        assert interval is not None
        inside.append(interval.low <= row.runtime_ms <= interval.high)
        widths.append((interval.high - interval.low) / 2 / prediction.runtime_ms)
        if options.networks:
            off = prediction.runtime_ms / row.runtime_ms - 1
            print(f"{name}: {row.runtime_ms:.1f} ms, predicted {100 * off:+.1f}%")
    print(
        f"{len(rows)} networks; 90% intervals hold {100 * np.mean(inside):.0f}%, "
        f"half-width {100 * np.median(widths):.1f}% in the median"
    )


if __name__ == "__main__":
    main()
