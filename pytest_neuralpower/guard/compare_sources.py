"""Read and compare two sets of predictions: JSON reports, baselines, folders, git revisions."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

from msgspec import UNSET, Struct

from pytest_neuralpower.errors import BaselineError, CompareError, NeuralPowerError, PlatformError
from pytest_neuralpower.guard.baseline import Baseline, parse_baseline, read_baseline
from pytest_neuralpower.guard.compare import Comparison, compare_predictions, judge
from pytest_neuralpower.guard.finding import Finding, read_report
from pytest_neuralpower.layer_codec import priced_layers
from pytest_neuralpower.platform.catalog import load_platform, priced_by
from pytest_neuralpower.platform.prediction import LayerPrediction, Prediction
from pytest_neuralpower.text import printable

if TYPE_CHECKING:
    from pytest_neuralpower.guard.tolerance import Tolerance
    from pytest_neuralpower.platform.protocol import Platform


class Key(NamedTuple):
    """What a prediction is compared by."""

    name: str
    platform: str


Source = Mapping[Key, Baseline]


def read_pair(base: str, head: str, folder: Path) -> tuple[Source, Source]:
    """Both sides; two baseline files are compared whatever they are called.

    Raises
    ------
    CompareError, BaselineError
        With one line, for what cannot be read.
    """
    sides = read_source(base, folder), read_source(head, folder)
    if all(Path(each).suffix in (".yaml", ".yml") for each in (base, head)):
        ((_, one),) = sides[0].items()
        ((key, other),) = sides[1].items()
        if one.platform == other.platform:
            return {key: one}, {key: other}
    return sides


def read_source(given: str, folder: Path) -> Source:
    """Predictions by name and platform.

    Parameters
    ----------
    given
        A JSON report, a baseline, a folder of baselines, or a git revision.
    folder
        The folder of baselines to look at in a git revision.

    Raises
    ------
    CompareError, BaselineError
        With one line, for what cannot be read.
    """
    path = Path(given)
    if path.suffix == ".json" and path.exists():
        return _report(path)
    if path.is_dir():
        files = sorted(path.rglob("*.yaml"))
        return _collected(given, [(str(each), read_baseline(each)) for each in files])
    if path.exists():
        return _collected(given, [(given, read_baseline(path))])
    if path.suffix in (".json", ".yaml", ".yml"):
        raise CompareError(
            f"{given}: there is no such file; write a report with pytest --np-report=PATH.json, or "
            "a baseline with pytest --np-update-baseline=new"
        )
    return _revision(given, folder)


def _collected(given: str, found: list[tuple[str, Baseline]]) -> Source:
    if not found:
        raise CompareError(
            f"{given} has no baselines: write some with pytest --np-update-baseline=new"
        )
    return {
        Key(printable(PurePosixPath(path).stem), printable(each.platform)): each
        for path, each in found
    }


def _report(path: Path) -> Source:
    report = read_report(path)
    found = {}
    for each in report.predictions:
        try:
            key = Key(printable(each.name), printable(each.platform))
            found[key] = _prediction(each, report.torch)
        except ValueError as error:
            raise CompareError(
                f"{path}: a prediction is broken ({error}): write the report again"
            ) from None
    return found


def _prediction(finding: Finding, torch: str) -> Baseline:
    if finding.layers is UNSET:
        raise ValueError("it has no layers")
    return Baseline(
        test=finding.test,
        model=finding.model,
        batch=finding.batch,
        platform=finding.platform,
        platform_sha256=finding.platform_sha256,
        torch=torch,
        estimator=finding.estimator,
        layers=priced_layers(bytes(finding.layers)),
        host=finding.host or None,
    )


def _revision(revision: str, folder: Path) -> Source:
    command = ["git", "archive", "--format=tar", revision, "--", folder.as_posix()]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise CompareError(f"git cannot be run ({error.strerror}): it reads {revision!r}") from None
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["?"])[0]
        raise CompareError(
            f"{revision!r} is not a file, and git has no baselines of it in {folder} "
            f"({reason.removeprefix('fatal: ')}): give a report, a baseline, a folder, or a git "
            "revision with --folder"
        )
    found = []
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.name.endswith(".yaml") else None
            if file is not None:
                name = f"{revision}:{member.name}"
                found.append((name, _parsed(file.read(), name)))
    return _collected(f"{folder} in {revision}", found)


def _parsed(content: bytes, name: str) -> Baseline:
    try:
        return parse_baseline(content.decode("utf-8"), name)
    except UnicodeDecodeError:
        raise BaselineError(f"baseline {name} is not text") from None


# -- Comparing two sets.


Outcome = Literal["ok", "regressed", "new", "removed", "failed"]


class ComparedModel(Struct, frozen=True):
    """One model of two sets of predictions; ``comparison`` is None where it is in one alone or
    could not be compared, and ``error`` then says why not."""

    name: str
    platform: str
    outcome: Outcome
    comparison: Comparison | None = None
    error: str | None = None


def compare_sources(
    base: Source, head: Source, *, platforms: Sequence[str], tolerance: Tolerance
) -> list[ComparedModel]:
    """Every model of both, sorted by name.

    Parameters
    ----------
    platforms
        Files of platforms that are not shipped.

    Raises
    ------
    CompareError
        The two have no model in common.
    """
    if not set(base) & set(head):
        raise CompareError(
            "no model is in both: predictions are compared by name and platform; BASE has "
            f"{_named(base)}, HEAD has {_named(head)}"
        )
    loaded = {each.name: each for each in map(load_platform, platforms)}
    found: list[ComparedModel] = []
    for key in sorted({*base, *head}):
        if key not in base or key not in head:
            found.append(ComparedModel(*key, outcome="removed" if key in base else "new"))
            continue
        try:
            comparison = judge(_compare(base[key], head[key], loaded), tolerance)
        except NeuralPowerError as error:
            found.append(ComparedModel(*key, outcome="failed", error=str(error)))
        else:
            outcome: Outcome = "regressed" if comparison.breaches else "ok"
            found.append(ComparedModel(*key, outcome=outcome, comparison=comparison))
    return found


def _named(source: Source) -> str:
    names = [f"{key.name} ({key.platform})" for key in sorted(source)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _compare(base: Baseline, head: Baseline, loaded: Mapping[str, Platform]) -> Comparison:
    """On today's platform; as stored where that is not here and both are of one calibration."""
    try:
        platform = loaded.get(head.platform) or load_platform(head.platform)
    except PlatformError:
        if base.platform_sha256 != head.platform_sha256:
            raise CompareError(
                f"the two were predicted on different calibrations of {head.platform!r}, which is "
                "not shipped: give its file with --platform, to predict both again"
            ) from None
        sides = _as_stored(base), _as_stored(head)
    else:
        platform = priced_by(platform, head.estimator)
        sides = base.repredict(platform), head.repredict(platform)
    return compare_predictions(
        *sides, base.totals, base.platform_sha256, stored_estimator=base.estimator
    )


def _as_stored(baseline: Baseline) -> Prediction:
    return Prediction(
        tuple(
            LayerPrediction(each.layer, each.runtime_ms, each.power_w, each.energy_mj, "stored")
            for each in baseline.layers
        ),
        baseline.platform,
        baseline.platform_sha256,
        batch=baseline.batch,
        model=baseline.model,
        host=baseline.host,
        estimator=baseline.estimator,
    )


def exit_code(found: Sequence[ComparedModel]) -> int:
    """2 if any could not be compared, 1 if any costs too much more, 0 otherwise."""
    outcomes = {each.outcome for each in found}
    return 2 if "failed" in outcomes else 1 if "regressed" in outcomes else 0
