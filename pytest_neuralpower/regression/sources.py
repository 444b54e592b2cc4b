"""What can be compared: JSON reports, baselines, folders of baselines, and git revisions of one."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pytest_neuralpower.errors import BaselineError, CompareError
from pytest_neuralpower.regression.baseline import Baseline
from pytest_neuralpower.regression.baseline_file import parse_baseline, read_baseline
from pytest_neuralpower.regression.layer_record import priced_layer

__all__ = ["Key", "read_pair", "read_source"]


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
    return {Key(PurePosixPath(path).stem, each.platform): each for path, each in found}


def _report(path: Path) -> Source:
    from pytest_neuralpower.reports.session_report import FORMAT, VERSION  # noqa: PLC0415

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CompareError(
            f"{path} cannot be read as a report ({error}): write one with pytest "
            "--np-report=PATH.json"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CompareError(
            f"{path} is no report of this plugin: write one with pytest --np-report=PATH.json"
        )
    if content.get("version") != VERSION:
        raise CompareError(
            f"{path} has version {content.get('version')!r}, this release reads {VERSION}: upgrade "
            "pytest-neuralpower, or write the report again"
        )
    try:
        return {
            Key(each["name"], each["platform"]): _prediction(each, content["torch"])
            for each in content["predictions"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CompareError(
            f"{path}: a prediction is broken ({error}): write the report again"
        ) from None


def _prediction(record: Mapping[str, Any], torch: str) -> Baseline:
    return Baseline(
        test=record["test"],
        model=record["model"],
        batch=record["batch"],
        platform=record["platform"],
        platform_sha256=record["platform_sha256"],
        torch=torch,
        layers=tuple(map(priced_layer, record["layers"])),
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
            f"{revision!r} is no file, and git has no baselines of it in {folder} "
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
        raise BaselineError(f"baseline {name} is no text") from None
