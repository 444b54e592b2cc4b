"""Prints predictions next to what the paper predicted and measured, after the guarded networks ran.

By each platform's chosen estimators, and by the paper's fitted to the same rows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from tabulate import tabulate

from pytest_neuralpower import PlatformError, load_platform
from pytest_neuralpower.guard.finding import findings_from_text

if TYPE_CHECKING:
    import pytest
    from networks import Network

sys.path.insert(0, str(Path(__file__).parent))


_FILE = "networks.budget.yaml::"

#: What predicts -> how its column is headed.
_ESTIMATORS = {"best": "best", "neuralpower": "NeuralP."}


class _Cost(NamedTuple):
    runtime_ms: float
    energy_j: float


class _PaperTable:
    """Reads the figures off the reports, where xdist brings them too."""

    def __init__(self) -> None:
        #: By the network's name in the file, the platform and what predicted.
        self.found: dict[tuple[str, str, str], _Cost] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _FILE not in report.nodeid:
            return
        name = report.nodeid.partition(_FILE)[2].partition("[")[0]
        for finding in findings_from_text(getattr(report, "neuralpower", "[]")):
            if finding.runtime_ms is not None and finding.energy_mj is not None:
                cost = _Cost(finding.runtime_ms, finding.energy_mj / 1e3)
                self.found[name, finding.platform, finding.estimator] = cost

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.found:
            return
        from networks import NETWORKS  # noqa: PLC0415 - imports torch, which others may not need

        names = {name for name, *_ in self.found}
        networks = [each for each in NETWORKS if each.factory.__name__ in names]
        self._predict_by_others(networks)
        terminalreporter.section("predicted next to the paper's Titan X (TensorFlow)")
        for quantity, place in (("runtime, ms", 0), ("energy, J", 1)):
            for line in self._table(networks, quantity, place).splitlines():
                terminalreporter.line(line.rstrip())
            terminalreporter.line("")
        for line in (
            "best: the estimators chosen by held-out error. NeuralP.: the NeuralPower paper's,",
            "fitted to the same public rows; the paper: as its authors predicted. Their",
            "TensorFlow ran without autotuning, as titanx-tf does; titanx takes the fastest",
            "algorithm of each convolution.",
        ):
            terminalreporter.line(line)

    def _predict_by_others(self, networks: Sequence[Network]) -> None:
        """By the estimators that the tests did not run with, where a platform has them."""
        from networks import meta_call  # noqa: PLC0415

        from pytest_neuralpower import predict  # noqa: PLC0415

        for platform in {platform for _, platform, _ in self.found}:
            for network in networks:
                for estimator in _ESTIMATORS:
                    key = network.factory.__name__, platform, estimator
                    if key in self.found:
                        continue
                    try:
                        loaded = load_platform(platform)
                        found = predict(*meta_call(network), platform=loaded, estimator=estimator)
                    except PlatformError:  # a file of the user's own, or without the paper's
                        break
                    if found.runtime_ms is not None and found.energy_mj is not None:
                        self.found[key] = _Cost(found.runtime_ms, found.energy_mj / 1e3)

    def _table(self, networks: Sequence[Network], quantity: str, place: int) -> str:
        measured = [(each.paper_ms, each.paper_j)[place] for each in networks]
        columns: dict[str, list[float | None]] = {}
        for platform, estimator in sorted({key[1:] for key in self.found}):
            costs = [
                self.found.get((each.factory.__name__, platform, estimator)) for each in networks
            ]
            columns[f"{platform}\n{_ESTIMATORS[estimator]}"] = [
                None if cost is None else cost[place] for cost in costs
            ]
        columns["the\npaper"] = [
            (each.neuralpower_ms, each.neuralpower_j)[place] for each in networks
        ]
        rows = [
            [network.name, *map(_cell, values, [actual] * len(values)), f"{actual:.3g}"]
            for network, actual, *values in zip(networks, measured, *columns.values(), strict=True)
        ]
        rows.append(["RMSPE", *(_rmspe(values, measured) for values in columns.values()), ""])
        # As rows, for tabulate makes columns wider than their headers.
        heads = [("", quantity), *(each.split("\n") for each in columns), ("", "measured")]
        align = ["left", *["right"] * (len(heads) - 1)]
        rows = [*map(list, zip(*heads, strict=True)), *rows]
        return tabulate(rows, tablefmt="plain", colalign=align, disable_numparse=True)


def _cell(value: float | None, measured: float) -> str:
    """``374  +1%``; a dash where nothing was predicted."""
    if value is None:
        return "-"
    return f"{value:.3g} {round(value / measured - 1, 2) + 0.0:+4.0%}"


def _rmspe(values: Sequence[float | None], measured: Sequence[float]) -> str:
    pairs = zip(values, measured, strict=True)
    errors = [value / actual - 1 for value, actual in pairs if value is not None]
    return f"{math.sqrt(fmean(error**2 for error in errors)):.0%}"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PaperTable(), "paper-table")
