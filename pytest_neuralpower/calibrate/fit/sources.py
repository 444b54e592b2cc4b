"""Rows of a recipe's sources: read, and brought to the recipe's own device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.readers import READERS
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import Ceilings, roofline_ms

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.recipe import Recipe, Source
    from pytest_neuralpower.calibrate.fit.rows import Row

__all__ = ["read_source", "scaled"]


def read_source(recipe: Recipe, source: Source, data_root: Path | None) -> list[Row]:
    """All rows of one source, flawed ones included.

    Raises
    ------
    ProfileError
        The source cannot be read, or none of its rows is selected.
    """
    if source.profile:
        return list(read_profile(recipe.folder / source.profile).rows)
    reader = READERS.get(source.reader or "")
    if reader is None:
        raise ProfileError(
            f"recipe of {recipe.name}: unknown reader {source.reader!r}; there are "
            f"{', '.join(READERS)}"
        )
    if data_root is None:
        raise ProfileError(
            f"recipe of {recipe.name} reads public tables: say where they are (--data DIR)"
        )
    rows = reader(data_root / source.path, source.options)
    if not rows:
        raise ProfileError(f"recipe of {recipe.name}: no row of {source.path} is selected")
    if source.datasheet is not None:
        sibling = find_device(source.datasheet).hardware(recipe.dtype)
        rows = scaled(rows, sibling, recipe.hardware)
    return [replace(row, stack=source.stack) for row in rows]


def scaled(
    rows: Sequence[Row], measured: Mapping[str, float], wanted: Mapping[str, float]
) -> list[Row]:
    """Times of one board as another would take them, by what both can at most do."""
    found = list(rows)
    members: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        members.setdefault(family(row.layer), []).append(place)
    for name, places in members.items():
        values = columns(name, [rows[place].layer for place in places])
        ratio = roofline_ms(name, values, Ceilings.of(wanted))
        ratio = np.asarray(ratio / roofline_ms(name, values, Ceilings.of(measured)))
        for place, factor in zip(places, ratio.tolist(), strict=True):
            found[place] = replace(found[place], runtime_ms=found[place].runtime_ms * factor)
    return found
