"""What one guarded prediction of a test found: what reports lay out, and what xdist carries.

The fields of a :class:`Finding` and of a :class:`Report`, in their order, are those of the JSON
report; ``docs/report-format.md`` says what each means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from pytest_neuralpower.errors import CompareError
from pytest_neuralpower.files import read_bytes
from pytest_neuralpower.guard.budget import Verdict
from pytest_neuralpower.guard.compare import Comparison
from pytest_neuralpower.platform.intervals import Interval
from pytest_neuralpower.platform.prediction import Host
from pytest_neuralpower.units import Quantity, show, show_percent

FORMAT: Final = "pytest-neuralpower report"
VERSION: Final = 1

Outcome = Literal[
    "ok", "over", "untrusted", "regressed", "missing", "misused", "failed", "unbounded"
]


class BaselineState(Struct, frozen=True):
    """A prediction's baseline file, and what became of it.

    Attributes
    ----------
    name, path
        Of the baseline; the path as messages show it.
    status
        ``held`` (compared with), ``missing``, ``update`` (to be written at the session's end),
        ``written``, ``unchanged`` (written alike before), ``left`` (its test did not pass).
    text
        What is to be written; never in a report.
    other_name
        Its name where another test has taken the first; unset where a marker gave it. Never in a
        report.
    """

    name: str
    path: str
    status: Literal["held", "missing", "update", "written", "unchanged", "left"]
    text: str | UnsetType = UNSET
    other_name: str | UnsetType = UNSET


class MeasuredQuantity(Struct, frozen=True):
    """A measured and a predicted value in mJ, ms or W; None is what the platform does not know."""

    measured: float
    predicted: float | None
    error_percent: float | None
    inside_interval: bool | None


class CallComparison(Struct, frozen=True, omit_defaults=True):
    """A call as it was measured on the device, and its prediction.

    Attributes
    ----------
    calls, median_ms
        How often the call was timed, and the median of these; ``runtime`` is the least.
    runtime, power, energy
        In ms, W and mJ; None where it was not measured.
    """

    model: str
    platform: str
    device: str
    calls: int
    median_ms: float
    runtime: MeasuredQuantity
    power: MeasuredQuantity | None = None
    energy: MeasuredQuantity | None = None

    def to_json(self) -> dict[str, object]:
        """In JSON's types, without what was not measured."""
        found: dict[str, object] = msgspec.to_builtins(self)
        return found

    def lines(self) -> list[str]:
        """One line a quantity: ``runtime: measured 12.3 ms, predicted 12.9 ms (+4.9%), ...``."""
        quantities: dict[Quantity, MeasuredQuantity | None] = {
            "runtime": self.runtime,
            "power": self.power,
            "energy": self.energy,
        }
        lines = []
        for name, compared in quantities.items():
            if compared is None:
                continue
            text = f"{name}: measured {show(name, compared.measured)}"
            if compared.predicted is not None:
                text += (
                    f", predicted {show(name, compared.predicted)} ({compared.error_percent:+.1f}%)"
                )
            if compared.inside_interval is not None:
                where = "inside" if compared.inside_interval else "outside"
                text += f", {where} its interval"
            lines.append(text)
        return lines

    def text(self) -> str:
        """What ``neuralpower measure`` prints."""
        return "\n".join(
            [
                f"{self.model} on {self.device}, platform {self.platform}",
                *self.lines(),
                f"least of {self.calls} calls, their median {show('runtime', self.median_ms)}"
                + ("" if self.energy else "; energy was not measured: no meter"),
            ]
        )


class Finding(Struct, frozen=True):
    """One prediction of a guarded test, held against its budgets and its baseline.

    Attributes
    ----------
    name
        What predictions are paired by in comparisons: the name of its baseline.
    test, file, line
        Node id; file below the root, and line from 1 (None if unknown), of the test.
    energy_mj, runtime_ms, power_w
        Of one call; None is what the platform does not know.
    estimated_power
        Whether power was never metered.
    untrusted_share
        Share (0..1) of the energy, or of the runtime without one, that no measurement supports.
    budgets
        The verdict of each budget.
    failure
        What people read; empty where nothing is broken.
    measured, comparison, baseline
        Unset where nothing was measured, compared, or has a baseline.
    provenance
        Of the platform, for people.
    energy_interval_mj, runtime_interval_ms, power_interval_w
        To six digits; None on a platform without.
    host
        What the call waited for; unset where its mode does not wait.
    estimator
        ``best``, or ``neuralpower`` where the paper's polynomials priced what they can.
    layers
        A JSON array with one layer a line (``layer_codec``), unset where no report shows layers:
        thousands of them stay one text on their way from an xdist worker.
    """

    name: str
    test: str
    platform: str
    platform_sha256: str
    model: str
    batch: int
    energy_mj: float | None = None
    runtime_ms: float | None = None
    power_w: float | None = None
    estimated_power: bool = False
    untrusted_share: float = 0.0
    budgets: tuple[Verdict, ...] = ()
    outcome: Outcome = "unbounded"
    failure: str = ""
    measured: CallComparison | UnsetType = UNSET
    comparison: Comparison | UnsetType = UNSET
    baseline: BaselineState | UnsetType = UNSET
    file: str = ""
    line: int | None = None
    provenance: Mapping[str, str] = {}
    energy_interval_mj: Interval | None = None
    runtime_interval_ms: Interval | None = None
    power_interval_w: Interval | None = None
    energy_basis: str = ""
    host: Host | UnsetType = UNSET
    estimator: str = "best"
    notes: tuple[str, ...] = ()
    layers: msgspec.Raw | UnsetType = UNSET

    @property
    def predicted_by(self) -> str:
        """The platform, and which of its estimators where they are not the usual ones."""
        return self.platform if self.estimator == "best" else f"{self.platform}, {self.estimator}"

    def tightest(self, quantity: Quantity) -> Verdict | None:
        """The verdict of the tightest budget of one quantity: of a broken one, if there is any."""
        found = [each for each in self.budgets if each.quantity == quantity]
        return max(found, key=lambda each: each.value / each.limit, default=None)

    @property
    def headline(self) -> str:
        """What is broken, in a few words: ``33.7 mJ > 25 mJ on t4``."""
        said = next(iter(self.failure.splitlines()), "")
        broken = [each for each in self.budgets if not each.passed]
        if self.outcome == "over" and broken:
            said = "; ".join(each.headline for each in broken)
        elif self.outcome == "untrusted":
            said = f"{show_percent(self.untrusted_share)} not measured"
        elif self.outcome == "regressed" and self.comparison is not UNSET:
            total = self.comparison.known()
            said = "; ".join(
                f"{show(quantity, each.base)} -> {show(quantity, each.head)}"
                for quantity, each in total.items()
            )
        else:
            return said
        return f"{said} on {self.platform}"

    def record(self) -> dict[str, object]:
        """What the JSON report has of it but its layers, in JSON types."""
        found: dict[str, object] = msgspec.to_builtins(replace(self, layers=UNSET))
        return found


class Report(Struct, frozen=True, kw_only=True):
    """What a session found, sorted by test and platform; no dates, durations or machine names.

    Attributes
    ----------
    plugin, torch
        Versions.
    stale_baselines
        Paths of baselines that no test predicts any more.
    """

    format: str = FORMAT
    version: int = VERSION
    plugin: str
    torch: str
    stale_baselines: tuple[str, ...] = ()
    predictions: tuple[Finding, ...]


def findings_to_text(findings: Sequence[Finding]) -> str:
    """Findings as JSON: what a test's report carries, also from an xdist worker."""
    return msgspec.json.encode(findings).decode()


def findings_from_text(text: str) -> tuple[Finding, ...]:
    """What :func:`findings_to_text` wrote."""
    return msgspec.json.decode(text, type=tuple[Finding, ...])


def read_report(path: Path) -> Report:
    """Read a JSON report.

    Raises
    ------
    CompareError
        With one line: it cannot be read, is not a report, of another version, or broken.
    """
    content = read_bytes(path, file=f"report {path}", error=CompareError)
    try:
        head = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:
        raise CompareError(
            f"{path} cannot be read as a report ({error}): write one with pytest "
            "--np-report=PATH.json"
        ) from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise CompareError(
            f"{path} is not a report of this plugin: write one with pytest --np-report=PATH.json"
        )
    if head.get("version") != VERSION:
        raise CompareError(
            f"{path} has version {head.get('version')!r}, this release reads {VERSION}: upgrade "
            "pytest-neuralpower, or write the report again"
        )
    try:
        return msgspec.json.decode(content, type=Report)
    except msgspec.ValidationError as error:
        raise CompareError(
            f"{path}: a prediction is broken ({error}): write the report again"
        ) from None
