"""The end of a session: write baselines that were asked for, find stale ones, write reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.guard.baseline import BaselineStore, write_baseline
from pytest_neuralpower.guard.stale import stale_baselines
from pytest_neuralpower.plugin.options import repeated_command

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.session_end import SessionEnd

__all__ = ["finish"]

Records = Mapping[str, Sequence[dict[str, Any]]]

#: So many files are named; of more only the count.
_NAMED = 5


def finish(end: SessionEnd, session: pytest.Session, records: Records) -> list[str]:
    """Write what the session was asked to write.

    Parameters
    ----------
    records
        By node id, of all tests, also those that ran on xdist workers.

    Returns
    -------
    list of str
        Lines for the terminal. What cannot be written fails the session.
    """
    store = BaselineStore(end.settings.baselines, session.config.rootpath)
    lines, failed = _write_baselines(end, store, records)
    command = repeated_command(session.config)
    lines += _missing_lines(records, command)
    stale = stale_baselines(end, session, store, records)
    lines += _stale_lines(stale)
    if end.settings.reports:
        from pytest_neuralpower.report.formats import write_reports  # noqa: PLC0415

        written, broken = write_reports(end.settings.reports, records, stale, session.config)
        lines += written
        failed = failed or broken
    if failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return lines


def _write_baselines(
    end: SessionEnd, store: BaselineStore, records: Records
) -> tuple[list[str], bool]:
    written, left, owners = [], [], dict[Path, str]()
    kept, lines, failed = 0, [], False
    for nodeid in sorted(records):
        for record in records[nodeid]:
            text = record.get("baseline", {}).pop("text", None)
            if text is None:
                continue
            path = store.path(record["platform"], record["baseline"]["name"])
            if end.outcomes.get(nodeid) != "passed":
                left.append(nodeid)
                record["baseline"]["status"] = "left"
                continue
            if path in owners:
                lines.append(
                    f"baseline {store.shown(path)} is of two tests, {owners[path]} and {nodeid}: "
                    "give one another name, regression(baseline=...)"
                )
                failed = True
                continue
            owners[path] = nodeid
            try:
                changed = write_baseline(path, text)
            except NeuralPowerError as error:
                return [*lines, str(error)], True
            record["baseline"]["status"] = "written" if changed else "unchanged"
            if changed:
                written.append(store.shown(path))
            else:
                kept += 1
    if written or kept:
        lines.append(f"baselines: {len(written)} written, {kept} unchanged")
        lines += [f"  {each}" for each in written[:_NAMED]]
    if left:
        lines.append(f"baselines left as they are, their tests did not pass: {_named(left)}")
    return lines, failed


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _missing_lines(records: Records, command: str) -> list[str]:
    missing = sorted(
        nodeid
        for nodeid, found in records.items()
        if any(each.get("baseline", {}).get("status") == "missing" for each in found)
    )
    if not missing:
        return []
    return [
        f"no baseline yet of {_named(missing)}",
        f"  write it and commit the file: {command} --np-update-baseline=new",
    ]


def _stale_lines(stale: Sequence[str]) -> list[str]:
    if not stale:
        return []
    noun = "baseline is" if len(stale) == 1 else "baselines are"
    return [
        f"{len(stale)} {noun} stale: no test predicts it any more; remove it:",
        f"  git rm {' '.join(map(shlex.quote, stale))}",
    ]
