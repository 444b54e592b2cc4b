"""Read and compare two sets of predictions: JSON reports, baselines, folders, git revisions."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

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
    shown = folder.as_posix()
    try:
        below = PurePosixPath(os.path.relpath(folder)).as_posix()
    except ValueError:  # another drive
        below = shown
    if _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{tree}}") is None:
        raise CompareError(
            f"{revision!r} is not a file, and git has no baselines of it in {shown} "
            f"({_why_unknown(revision)}): give a report, a baseline, a folder, or a git revision "
            "with --folder"
        )
    files = _tree(f"{revision}:./{below}")
    if files is None:
        raise CompareError(
            f"{revision!r} is not a file, and git has no baselines of it in {shown} (there is no "
            "such folder): give a report, a baseline, a folder, or a git revision with --folder"
        )
    found = [(f"{revision}:{path}", content) for path, content in files if path.endswith(".yaml")]
    parsed = [(name, _parsed(content, name)) for name, content in found]
    return _collected(f"{shown} in {revision}", parsed)


def _tree(place: str, depth: int = 0) -> list[tuple[str, bytes]] | None:
    """Paths and contents of the files in a folder of a revision, links followed within it; None
    where there is no such folder."""
    (tree,) = _objects([place])
    if tree is None or tree[0] != "tree":
        return None
    listed = _git("ls-tree", "-r", "-z", tree[1]) or b""
    paths, links = list[str](), list[str]()
    for entry in listed.decode(errors="surrogateescape").split("\0")[:-1]:
        facts, _, path = entry.partition("\t")
        (links if facts.startswith("120000") else paths).append(f"{place}/{path}")
    found = [
        (path.partition(":./")[2], each[2])
        for path, each in zip(paths + links, _objects(paths + links), strict=True)
        if each is not None and each[0] == "blob"
    ]
    for link in links if depth < _MOST_LINKS else ():
        found += _tree(link, depth + 1) or ()
    return found


#: Links within links that are followed: they may go round in a circle.
_MOST_LINKS: Final = 5


def _objects(names: Sequence[str]) -> list[tuple[str, str, bytes] | None]:
    """Type, hash and content of objects, links followed; None for those that are not there."""
    asked = "".join(f"{name}\n" for name in names if "\n" not in name)
    said = io.BytesIO(_git("cat-file", "--batch", "--follow-symlinks", given=asked) or b"")
    found: list[tuple[str, str, bytes] | None] = []
    for name in names:
        words = [] if "\n" in name else said.readline().decode(errors="replace").split()
        if len(words) == 3 and words[2].isdigit():
            found.append((words[1], words[0], said.read(int(words[2]))))
            said.readline()
        else:
            found.append(None)
            if words and words[0] in ("dangling", "loop", "notdir", "symlink"):
                said.readline()  # where the link leads to
    return found


def _why_unknown(revision: str) -> str:
    if _git("rev-parse", "--git-dir") is None:
        return "this is no git repository"
    if _git("rev-parse", "--is-shallow-repository") == b"true\n":
        return (
            "no such revision in this shallow clone: check out with fetch-depth: 0, or "
            "git fetch --unshallow"
        )
    remote = f"origin/{revision}"
    if _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{remote}^{{tree}}"):
        return f"this clone has no such branch of its own: write {remote}"
    return "no such revision here; in a CI check out with fetch-depth: 0"


def _git(*args: str, given: str = "") -> bytes | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *args],
            input=given.encode(errors="surrogateescape"),
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise CompareError(f"git cannot be run ({error.strerror}): it reads revisions") from None
    return None if done.returncode else done.stdout


def _parsed(content: bytes, name: str) -> Baseline:
    try:
        return parse_baseline(content.decode("utf-8"), name)
    except UnicodeDecodeError:
        raise BaselineError(f"baseline {name} is not text") from None


# -- Comparing two sets.


Outcome = Literal["ok", "regressed", "new", "removed", "failed"]


class ComparedModel(Struct, frozen=True):
    """One model of two sets of predictions.

    Attributes
    ----------
    comparison
        None where it is in one set alone, or could not be compared.
    error
        Why it could not be compared.
    was
        Its name in BASE, where its test was moved or renamed.
    energy_mj, runtime_ms
        Of one call, where it is in one set alone.
    """

    name: str
    platform: str
    outcome: Outcome
    comparison: Comparison | None = None
    error: str | None = None
    was: str | None = None
    energy_mj: float | None = None
    runtime_ms: float | None = None

    @property
    def title(self) -> str:
        """The name, and the one that it had."""
        return self.name if self.was is None else f"{self.name}, new name of {self.was}"


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
    moved = _moved(base, head)
    if not (set(base) & set(head) or moved):
        raise CompareError(
            "no model is in both: predictions are compared by name and platform; BASE has "
            f"{_named(base)}, HEAD has {_named(head)}"
        )
    loaded = {each.name: each for each in map(load_platform, platforms)}
    found: list[ComparedModel] = []
    for key in sorted({*base, *head} - set(moved.values())):
        was = moved.get(key, key)
        if was not in base or key not in head:
            outcome: Outcome = "removed" if key in base else "new"
            totals = (base.get(key) or head[key]).totals
            found.append(
                ComparedModel(
                    *key, outcome, energy_mj=totals.energy_mj, runtime_ms=totals.runtime_ms
                )
            )
            continue
        name = None if was == key else was.name
        try:
            comparison = judge(_compare(base[was], head[key], loaded), tolerance)
        except NeuralPowerError as error:
            found.append(ComparedModel(*key, outcome="failed", error=str(error), was=name))
        else:
            outcome = "regressed" if comparison.breaches else "ok"
            found.append(ComparedModel(*key, outcome=outcome, comparison=comparison, was=name))
    return found


#: Share of layers in common from which a model of another name is the same one.
_ALIKE: Final = 0.5
#: And where the test kept its own name and moved to another file.
_ALIKE_OF_ONE_TEST: Final = 0.2


def _moved(base: Source, head: Source) -> dict[Key, Key]:
    """Of tests that were moved or renamed, the key now and before: those whose models have the most
    layers in common, of the same operation at the same place."""
    gone, new = sorted(set(base) - set(head)), sorted(set(head) - set(base))
    layers = {
        (key, id(side)): Counter((each.layer.op, each.layer.path) for each in side[key].layers)
        for side, keys in ((base, gone), (head, new))
        for key in keys
    }
    pairs = []
    for was, now in itertools.product(gone, new):
        if was.platform != now.platform:
            continue
        one, other = layers[was, id(base)], layers[now, id(head)]
        alike = (one & other).total() / max(one.total(), other.total())
        same_test = _function(base[was]) == _function(head[now])
        if alike >= (_ALIKE_OF_ONE_TEST if same_test else _ALIKE):
            same_cost = base[was].totals == head[now].totals
            same_model = base[was].model == head[now].model
            pairs.append((alike, same_cost, same_test, same_model, was, now))
    moved: dict[Key, Key] = {}
    for *_, was, now in sorted(pairs, key=lambda pair: pair[:4], reverse=True):
        if now not in moved and was not in moved.values():
            moved[now] = was
    return moved


def _function(baseline: Baseline) -> str:
    return baseline.test.rpartition("::")[2]


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
