"""Public tables as lines: where they are, their records, which of them a recipe selects."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pytest_neuralpower.errors import ProfileError

#: Where the public tables are, when they are not in ``../shared/data`` beside the repository.
DATA_VARIABLE: Final = "NEURALPOWER_DATA"

Options = Mapping[str, Any]
Record = dict[str, str]


def data_root(repository: Path) -> Path:
    """Folder of the public tables.

    Raises
    ------
    ProfileError
        It is neither where the environment says nor at the default place.
    """
    named = os.environ.get(DATA_VARIABLE)
    root = Path(named) if named else repository.parent / "shared" / "data"
    if not root.is_dir():
        raise ProfileError(
            f"no public tables at {root}: set {DATA_VARIABLE} to the folder that has deepbench/ "
            "and convnet-benchmarks/"
        )
    return root


def read_table(path: Path) -> Iterator[tuple[int, Record]]:
    """Lines of a CSV file (gzipped or not) with their number; the header is line 1.

    Raises
    ------
    ProfileError
        There is no such file.
    """
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            yield from enumerate(csv.DictReader(file), start=2)
    except FileNotFoundError:
        raise ProfileError(f"{path}: there is no such table; see its recipe's sources") from None


def selected(path: Path, options: Options) -> Iterator[tuple[int, Record]]:
    """Lines whose columns have the values that the option ``select`` gives, one or a list; without
    those whose columns have all the values that ``unless`` gives."""
    wanted, unwanted = options.get("select", {}), options.get("unless", {})
    for line, record in read_table(path):
        if _agrees(record, wanted) and not (unwanted and _agrees(record, unwanted)):
            yield line, record


def _agrees(record: Record, values: Mapping[str, Any]) -> bool:
    return all(
        record[column] in value if isinstance(value, list) else record[column] == value
        for column, value in values.items()
    )
