"""Run the calls of a table on this machine's device, and write down what they took."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from pytest_neuralpower.calibrate.fit.calls import run_model, table
from pytest_neuralpower.calibrate.measure.device import open_device
from pytest_neuralpower.calibrate.measure.network import measure_call
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.files import write_atomically
from pytest_neuralpower.model_source import parse_inputs


def measure_runs(
    path: Path, *, device: str, dtype: str, meter: str, report: Callable[[str], None]
) -> None:
    """Fill in ``runtime_ms``, and ``energy_mj`` where a meter reads power, of the lines without.

    The table is written again after each call, so that nothing is lost.

    Parameters
    ----------
    path
        Of the table (see :func:`~pytest_neuralpower.calibrate.fit.calls.run_calls`).
    device
        ``cpu``, ``cuda:0``; empty for the first GPU, else the CPU.
    dtype
        That the device's ceilings are measured in.
    meter
        As :func:`~pytest_neuralpower.calibrate.measure.device.open_device` takes it.
    report
        Told a line a call.

    Raises
    ------
    ProfileError
        The table cannot be read or written.
    OptionError, TraceError
        There is no such device; a call cannot be run there.
    """
    lines = [(line, dict(record)) for line, record in table(path, ("model", "inputs"))]
    todo = [(line, record) for line, record in lines if not record.get("runtime_ms")]
    if not todo:
        return
    opened = open_device(device, dtype, meter=meter)
    try:
        for line, record in todo:
            model = run_model(record, path, line)
            args, kwargs = parse_inputs(record["inputs"].split())
            found = measure_call(model, args, kwargs, opened)
            record["runtime_ms"] = f"{found.median_ms:.6g}"
            if found.energy_mj is not None:
                record["energy_mj"] = f"{found.energy_mj:.6g}"
            _write(path, [each for _, each in lines])
            report(f"  {record['model']} {record['inputs']}: {found.median_ms:.4g} ms")
    finally:
        opened.close()


def _write(path: Path, lines: list[dict[str, str]]) -> None:
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    out = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    out.writeheader()
    out.writerows(lines)
    try:
        write_atomically(path, text.getvalue())
    except OSError as error:
        raise ProfileError(f"{path}: it cannot be written ({error})") from None
