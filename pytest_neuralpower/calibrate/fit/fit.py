"""What a family of layers must pass before it ships: its baselines, and rows set apart for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.calibrate.fit.card import with_calibration, write_card, write_figure
from pytest_neuralpower.calibrate.fit.designs import runtime_makers
from pytest_neuralpower.calibrate.fit.power import (
    LayerPower,
    constant_power,
    fit_layer_power,
    fit_power,
    judge_networks,
    metered_power,
    transfer_power,
)
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.readers import READERS
from pytest_neuralpower.calibrate.fit.readers.neusight import judge_overhead
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.calibrate.fit.uncertainty import (
    FamilyFit,
    Fitted,
    learn_totals,
    with_intervals,
)
from pytest_neuralpower.errors import FitError, PlatformError, ProfileError
from pytest_neuralpower.estimators.base import refuse_bad_rows
from pytest_neuralpower.estimators.features import Columns, FloatArray, columns, family
from pytest_neuralpower.estimators.selection import Score, baseline_makers, held_out, select
from pytest_neuralpower.platform.price import Fallback, FamilyModel, FittedPlatform
from pytest_neuralpower.platform.ranges import PROVENANCE_KEY as WIDTHS
from pytest_neuralpower.platform.ranges import calibrated_ranges, measured_widths

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import NetworkRow, Row
    from pytest_neuralpower.estimators import Estimator

#: Held-out MAPE (%) under which a tie with the roofline is as good as beating it: tensors that are
#: only streamed take what the roofline says, and no knowledge could add to that.
EXACT: Final = 1.0


def beats(mape: float, baselines: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether an estimator's held-out MAPE (%) is below that of every baseline that could be
    fitted: what does not beat counting operations or the roofline is not worth shipping."""
    margin = 0.05 if mape < EXACT else 0.0
    return all(mape < score["mape"] + margin for score in baselines.values() if "mape" in score)


def is_kept(found: Mapping[str, Any], *, alone: str = "") -> bool:
    """Whether a family's chosen estimator is kept: it must beat its baselines.

    Parameters
    ----------
    found
        Held-out scores, which was chosen, and the baselines' scores.
    alone
        The one baseline that counts: of a device measured on the spot the one that would price
        the family instead.
    """
    baselines = found["baselines"]
    mape: float = found["held_out"][found["chosen"]]["mape"]
    return beats(mape, {alone: baselines[alone]} if alone else baselines)


def judge_split(
    rows: Sequence[Row],
    values: Columns,
    runtime: FloatArray,
    makers: Mapping[str, Callable[[], Estimator]],
) -> dict[str, Any] | None:
    """Errors on the rows that a source was set apart for, of estimators that saw none of them.

    The candidates compete on the other rows alone; the one that wins there is what is judged,
    whatever the others score here.

    Returns
    -------
    dict or None
        ``trained`` and ``judged`` (numbers of rows), ``chosen`` and every candidate's score; None
        when no row is set apart.

    Raises
    ------
    FitError
        The other rows cannot be fitted.
    """
    apart = np.array([row.judges for row in rows])
    if not apart.any() or apart.all():
        return None
    seen = {name: each[~apart] for name, each in values.items()}
    unseen = {name: each[apart] for name, each in values.items()}
    groups = [row.shape_group for row in rows if not row.judges]
    chosen = select(makers, seen, runtime[~apart], groups)
    scores: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            fitted = make().fit(seen, runtime[~apart], groups=groups)
            scores[name] = Score.of(fitted.predict(unseen), runtime[apart]).to_json()
        except FitError as error:
            scores[name] = {"refused": str(error)}
    return {
        "trained": int((~apart).sum()),
        "judged": int(apart.sum()),
        "chosen": chosen.estimator.name,
        "scores": scores,
    }


# -- Fit a platform from measured rows, as a recipe says.

#: Families that only stream their tensors: what bandwidth they reach prices the fallback.
_STREAMING: Final = ("activation", "elementwise")

#: Families whose operations count: what rate they reach bounds the fallback.
_COMPUTING: Final = ("conv", "linear", "matmul")

_SOURCE_FACTS: Final = ("title", "url", "license", "commit", "note", "rows", "left_out")


def _silent(_: str) -> None:
    """Nobody asked for progress."""


def fit_directory(
    directory: Path, *, data_root: Path | None = None, candidates: Collection[str] = ()
) -> FittedPlatform:
    """The platform of :func:`fit_recipe` for the recipe in ``directory``; raises as that does."""
    return fit_recipe(read_recipe(directory), data_root=data_root, candidates=candidates).platform


def fit_recipe(
    recipe: Recipe,
    *,
    data_root: Path | None = None,
    candidates: Collection[str] = (),
    progress: Callable[[str], None] = _silent,
) -> Fitted:
    """Fit the platform that a recipe describes.

    Parameters
    ----------
    recipe
        Of ``calibration/<platform>/recipe.yaml``; where the rows are ours, a profile is beside it.
    data_root
        Folder of the public tables, where the recipe reads any.
    candidates
        Estimators that compete, by name; empty for all.
    progress
        Told what is fitted next, in a few words.

    Raises
    ------
    ProfileError
        The recipe or its rows cannot be read.
    FitError
        The rows cannot be fitted.
    MissingExtraError
        The extra ``calibrate`` is not installed.
    """
    rows, recipe = read_rows(recipe, data_root)
    profiles = [
        read_profile(recipe.folder / source["profile"])
        for source in recipe.sources
        if "profile" in source
    ]
    networks = [network for profile in profiles for network in profile.networks]
    fitted = fit_rows(
        rows,
        recipe,
        candidates=candidates,
        fit_other=lambda other: fit_directory(other, data_root=data_root, candidates=candidates),
        rows_of=lambda other: read_rows(read_recipe(other), data_root)[0],
        progress=progress,
        networks=networks,
    )
    platform = fitted.platform
    if recipe.totals == "in place":
        platform = learn_totals(platform, fitted.families, networks)
    return replace(fitted, platform=with_calibration(platform, profiles))


def read_rows(recipe: Recipe, data_root: Path | None) -> tuple[list[Row], Recipe]:
    """The sound rows of a recipe's sources, and the recipe with their numbers.

    Each source gets ``rows`` and, by reason, the number of those ``left_out``.

    Raises
    ------
    ProfileError
        A source cannot be read, or none of its rows is selected.
    """
    rows: list[Row] = []
    sources = []
    for source in recipe.sources:
        found = _read_source(recipe, source, data_root)
        sound = [row for row in found if not row.flaw]
        flaws = Counter(row.flaw for row in found if row.flaw)
        sources.append({**source, "rows": len(sound), "left_out": dict(sorted(flaws.items()))})
        rows += [replace(row, judges=True) for row in sound] if source.get("judges") else sound
    return rows, replace(recipe, sources=tuple(sources))


def fit_command(
    directory: Path, out: Path | None, *, data_root: Path | None = None
) -> tuple[Path, FittedPlatform]:
    """:func:`fit_recipe`, then save to ``out`` and write the folder's card.

    ``out`` is ``NAME.json`` by default: in the folder of a calibration, else here.
    Returns where the platform was saved, and what was.

    Raises
    ------
    As :func:`fit_recipe`; PlatformError where there is no folder to write ``out`` to;
    ProfileError where the card cannot be written.
    """
    recipe = read_recipe(directory)
    if out is not None and not out.parent.is_dir():
        raise PlatformError(f"--out {out}: there is no folder {out.parent}; make it first")
    fitted = fit_recipe(recipe, data_root=data_root)
    name = Path(f"{recipe.name}.json")
    path = out or (directory / name if recipe.plan else name)
    saved = fitted.platform.save(path)
    try:
        write_card(saved, directory)
        write_figure(fitted, directory)
    except OSError as error:
        raise ProfileError(f"{directory}: its card cannot be written ({error})") from None
    return path, saved


def _read_source(recipe: Recipe, source: Any, data_root: Path | None) -> Sequence[Row]:
    if "profile" in source:
        return read_profile(recipe.folder / source["profile"]).rows
    reader = READERS.get(str(source.get("reader")))
    if reader is None:
        raise ProfileError(
            f"recipe of {recipe.name}: unknown reader {source.get('reader')!r}; there are "
            f"{', '.join(READERS)}"
        )
    if data_root is None:
        raise ProfileError(
            f"recipe of {recipe.name} reads public tables: say where they are (--data DIR)"
        )
    found = reader(data_root / source["path"], source)
    if not found:
        raise ProfileError(f"recipe of {recipe.name}: no row of {source['path']} is selected")
    return found


def fit_rows(
    rows: Iterable[Row],
    recipe: Recipe,
    *,
    candidates: Collection[str] = (),
    fit_other: Callable[[Path], FittedPlatform] = fit_directory,
    rows_of: Callable[[Path], Sequence[Row]] = lambda other: read_rows(read_recipe(other), None)[0],
    progress: Callable[[str], None] = _silent,
    networks: Sequence[NetworkRow] = (),
) -> Fitted:
    """Fit every family that the rows have, choosing each estimator by held-out shapes.

    ``fit_other`` fits the calibration folder whose power the recipe borrows; ``rows_of`` reads
    the rows of the one that it transfers power from; ``networks`` are whole networks that a
    calibration timed, and metered where their power is known.

    Raises
    ------
    FitError
        No rows, or rows of some family that cannot be fitted; the message names the family.
    """
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        by_family.setdefault(family(row.layer), []).append(row)
    if not by_family:
        raise FitError("no measured rows: nothing can be fitted")
    families: dict[str, FamilyModel] = {}
    accuracy: dict[str, Any] = {"runtime": {}}
    tables = {
        name: (
            columns(name, [row.layer for row in members]),
            np.array([row.runtime_ms for row in members]),
        )
        for name, members in by_family.items()
    }
    for name, members in by_family.items():
        _refuse(recipe, name, tables[name], members)
    fallback = _fallback(tables, recipe)
    fits: dict[str, FamilyFit] = {}
    for name, members in by_family.items():
        try:
            fits[name], power, found = _fit_family(
                name, members, tables[name], recipe, candidates=candidates, progress=progress
            )
        except FitError as error:
            if not recipe.plan:
                raise FitError(f"{recipe.name}, {name}: {error}") from None
            # Random networks bring some kinds of layer too rarely; the fallback prices those.
            accuracy.setdefault("not_fitted", {})[name] = str(error)
            continue
        if not _is_kept(found, fits[name], fallback, recipe):
            accuracy.setdefault("not_shipped", {})[name] = found
            del fits[name]
            continue
        accuracy["runtime"][name] = found
        chosen: dict[str, Any] = {"runtime": fits[name].runtime.estimator}
        if power is not None:
            chosen |= power.chosen()
            accuracy.setdefault(f"layer_{power.quantity}", {})[name] = power.selection.accuracy()
        families[name] = FamilyModel(
            calibrated_ranges(name, tables[name][0]),
            overheads=dict.fromkeys(recipe.overheads.get(name, ()), 1.0 / fallback.bandwidth_gbs),
            **chosen,
        )
    if not families:
        raise FitError(f"{recipe.name}: no kind of layer could be fitted; measure longer")
    platform = FittedPlatform(
        name=recipe.name,
        device=recipe.device,
        dtype=recipe.dtype,
        mode=recipe.mode,
        tiers=dict(recipe.tiers),
        hardware=dict(recipe.hardware),
        families=families,
        fallback=fallback,
        power=None,
        provenance={
            **_provenance(recipe),
            WIDTHS: measured_widths({name: tables[name][0] for name in families}),
        },
        accuracy=accuracy,
    )
    platform = _with_power(platform, recipe, fit_other, rows_of, networks)
    platform = judge_networks(platform, recipe)
    left_out = {
        name: _fallback({other: tables[other] for other in tables if other != name}, recipe)
        for name in tables
        if len(tables) > 1
    }
    return Fitted(with_intervals(platform, recipe, fits, left_out), fits)


def _fit_family(
    name: str,
    members: Sequence[Row],
    table: tuple[Columns, FloatArray],
    recipe: Recipe,
    *,
    candidates: Collection[str],
    progress: Callable[[str], None],
) -> tuple[FamilyFit, LayerPower | None, dict[str, Any]]:
    """One family's choice of estimators, and its held-out errors beside the baselines'."""
    values, runtime = table
    design = recipe.designs.get(name, {})
    allowed = candidates or design.get("candidates") or recipe.candidates
    makers = {
        candidate: make
        for candidate, make in runtime_makers(name, design, recipe.hardware).items()
        if not allowed or candidate in allowed
    }
    if not makers:
        raise FitError(
            f"none of the candidates {', '.join(allowed)} can predict layers of this kind"
        )
    split = judge_split(members, values, runtime, makers)
    groups = [row.shape_group for row in members]
    progress(f"runtime of {len(members):,} {name} rows")
    chosen = select(makers, values, runtime, groups, lines=[row.line for row in members])
    overhead = judge_overhead(members, values, chosen, makers.get("physical"))
    progress(f"power of {len(members):,} {name} rows")
    power = fit_layer_power(name, members, values, chosen, design=design, hardware=recipe.hardware)
    fit = FamilyFit(
        members, values, runtime, chosen,
        power.selection if power and power.quantity == "power" else None,
        power.selection if power and power.quantity == "energy" else None,
    )  # fmt: skip
    found = {**chosen.accuracy(), "baselines": _score_baselines(fit, recipe)}
    return fit, power, {**found, **_known(split=split, overhead=overhead)}


def _with_power(
    platform: FittedPlatform,
    recipe: Recipe,
    fit_other: Callable[[Path], FittedPlatform],
    rows_of: Callable[[Path], Sequence[Row]],
    networks: Sequence[NetworkRow],
) -> FittedPlatform:
    """The platform with power for whatever has none of its own, as the recipe says."""
    if "transfer" in recipe.power:
        return transfer_power(platform, recipe, rows_of)
    if "watts" in recipe.power:
        return constant_power(platform, recipe)
    if networks and not recipe.power:
        return metered_power(platform, networks)
    return fit_power(platform, recipe, fit_other)


def _known(**findings: Any) -> dict[str, Any]:
    return {name: found for name, found in findings.items() if found is not None}


def _refuse(
    recipe: Recipe, name: str, table: tuple[Columns, FloatArray], members: Sequence[Row]
) -> None:
    try:
        refuse_bad_rows(*table, [row.line for row in members])
    except FitError as error:
        raise FitError(f"{recipe.name}, {name}: {error}") from None


def _score_baselines(fit: FamilyFit, recipe: Recipe) -> dict[str, Any]:
    """What FLOPs alone and the roofline score on the same held-out shapes."""
    scores: dict[str, Any] = {}
    for name, make in baseline_makers(recipe.hardware).items():
        try:
            predicted = held_out(make, fit.columns, fit.runtime_ms, fit.runtime.fold)
            scores[name] = Score.of(predicted, fit.runtime_ms).to_json()
        except FitError as error:
            scores[name] = {"refused": str(error)}
    return scores


def _is_kept(found: dict[str, Any], fit: FamilyFit, fallback: Fallback, recipe: Recipe) -> bool:
    """Whether a family keeps its estimator; of a device measured on the spot, ``found`` gets the
    score of the fallback, which prices the family if it does not."""
    if not recipe.plan:
        return is_kept(found)
    predicted = np.maximum(fallback.predict(fit.columns), fallback.floor_ms)
    found["baselines"]["fallback"] = Score.of(predicted, fit.runtime_ms).to_json()
    return is_kept(found, alone="fallback")


def _fallback(tables: Mapping[str, tuple[Columns, FloatArray]], recipe: Recipe) -> Fallback:
    """Rates that the measured layers reached in total; the device's ceilings where none did, or
    the recipe's ``streaming_gbs``, what others of its layers reach with their weights."""
    moved = [tables[name] for name in _STREAMING if name in tables]
    computed = [tables[name] for name in _COMPUTING if name in tables]
    bandwidth = recipe.hardware.get("streaming_gbs", recipe.hardware["bandwidth_gbs"])
    gflops = recipe.hardware["peak_gflops"]
    if moved:
        work = sum(float(values["bytes_moved"].sum()) for values, _ in moved)
        bandwidth = work / sum(float(time.sum()) for _, time in moved) / 1e6
    if computed:
        work = sum(float(values["flops"].sum()) for values, _ in computed)
        gflops = work / sum(float(time.sum()) for _, time in computed) / 1e6
    floor = min(float(time.min()) for _, time in tables.values())
    return Fallback(float(f"{bandwidth:.6g}"), float(f"{gflops:.6g}"), floor)


def _provenance(recipe: Recipe) -> dict[str, Any]:
    sources = [
        {key: source[key] for key in _SOURCE_FACTS if key in source} for source in recipe.sources
    ]
    return {"sources": sources, "notes": list(recipe.notes)}
