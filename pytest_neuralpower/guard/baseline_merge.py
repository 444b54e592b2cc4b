"""Merge two versions of a baseline file, without losing sight of a model that costs more.

Layers merge line by line, as git does it, and their totals are summed again. Where both sides have
changed a layer, what the merged model costs is not known before its test has run: the cheaper side
is taken, so that the test fails if the model costs more.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.guard.baseline import Baseline, baseline_text, parse_baseline
from pytest_neuralpower.layer_codec import priced_layers

_MARKERS: Final = re.compile(
    r"^<{7}[^\n]*\n(.*?)(?:^\|{7}[^\n]*\n(.*?))?^={7}\n(.*?)^>{7}[^\n]*\n?",
    re.MULTILINE | re.DOTALL,
)


def conflicted(folder: Path) -> list[Path]:
    """The baselines of a folder with conflict markers, sorted."""
    return [
        path
        for path in sorted(folder.rglob("*.yaml"))
        if _MARKERS.search(path.read_text(encoding="utf-8", errors="replace"))
    ]


def sides_of(text: str, name: str) -> tuple[str, str, str]:
    """Base, ours and theirs of a text with conflict markers; base is empty where git left it out.

    Raises
    ------
    BaselineError
        The text has no markers.
    """
    found = _MARKERS.search(text)
    if found is None:
        raise BaselineError(f"baseline {name}: it has no conflict markers to settle")
    ours, theirs = (_MARKERS.sub(partial(_side, number=number), text) for number in (1, 3))
    base = "" if found[2] is None else _MARKERS.sub(partial(_side, number=2), text)
    return base, ours, theirs


def _side(conflict: re.Match[str], number: int) -> str:
    return conflict[number] or ""


def merge_texts(base: str, ours: str, theirs: str, *, name: str) -> str:
    """The merged file.

    Parameters
    ----------
    base
        The common ancestor; empty where it is not known.
    name
        For messages.

    Raises
    ------
    BaselineError
        One of the sides is no baseline, or they are of different platforms.
    """
    if theirs in (ours, base):
        return ours
    if base == ours:
        return theirs
    # git has merged some lines of a text with markers: its totals are of no side.
    one, other = (
        parse_baseline(text, f"{name} ({side})", summed=True)
        for text, side in ((ours, "ours"), (theirs, "theirs"))
    )
    if one.platform != other.platform:
        raise BaselineError(
            f"baseline {name}: its sides are of platforms {one.platform!r} and {other.platform!r}; "
            "keep one of them"
        )
    merged = _by_lines(base, one, other) if base else None
    return baseline_text(merged or min(one, other, key=_cost))


def _by_lines(base: str, one: Baseline, other: Baseline) -> Baseline | None:
    """Layers of both merged, where no line was changed on both sides in different ways."""
    facts = (one.test, one.model, one.batch, one.platform_sha256, one.estimator, one.host)
    if facts != (
        *(other.test, other.model, other.batch, other.platform_sha256, other.estimator),
        other.host,
    ):
        return None
    texts = [baseline_text(each).partition("\nlayers:\n") for each in (one, other)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, each) for each in ("ours", "base", "theirs")]
        bodies = texts[0][2], base.partition("\nlayers:\n")[2], texts[1][2]
        for path, body in zip(paths, bodies, strict=True):
            path.write_text(body, encoding="utf-8")
        try:
            done = subprocess.run(
                ["git", "merge-file", "-p", *map(str, paths)], capture_output=True, check=False
            )
        except OSError:
            return None
    if done.returncode:
        return None
    lines = [line.removeprefix("- ") for line in done.stdout.decode().splitlines()]
    return replace(one, layers=priced_layers(f"[{','.join(lines)}]"))


def _cost(baseline: Baseline) -> float:
    totals = baseline.totals
    return totals.runtime_ms or 0.0 if totals.energy_mj is None else totals.energy_mj
