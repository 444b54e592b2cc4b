"""Fit a platform from measured rows, as a recipe says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
import numpy as np

from pytest_neuralpower.calibrate.fit.calls import fit_calls, read_all_calls
from pytest_neuralpower.calibrate.fit.card import with_calibration, write_card, write_figure
from pytest_neuralpower.calibrate.fit.designs import Design, runtime_makers
from pytest_neuralpower.calibrate.fit.judging import (
    FamilyAccuracy,
    Refused,
    baseline_scores,
    judge_overhead,
    judge_split,
    scored,
)
from pytest_neuralpower.calibrate.fit.power import (
    LayerPower,
    fit_layer_power,
    fit_power,
    judge_networks,
)
from pytest_neuralpower.calibrate.fit.power_prior import transferred_power
from pytest_neuralpower.calibrate.fit.prior import power_prior_for, priors_for
from pytest_neuralpower.calibrate.fit.profile import read_profile
from pytest_neuralpower.calibrate.fit.readers import read_source
from pytest_neuralpower.calibrate.fit.recipe import Recipe, read_recipe
from pytest_neuralpower.calibrate.fit.uncertainty import (
    FamilyFit,
    Fitted,
    learn_totals,
    with_intervals,
)
from pytest_neuralpower.errors import FitError, PlatformError, ProfileError
from pytest_neuralpower.estimators import (
    Bounded,
    Estimator,
    NeuralPowerPolynomial,
    Prior,
    Sparse,
)
from pytest_neuralpower.estimators.base import refuse_bad_rows
from pytest_neuralpower.estimators.features import (
    FLOAT8,
    STREAMING,
    Columns,
    FloatArray,
    columns,
    family,
    is_float8,
)
from pytest_neuralpower.estimators.neuralpower import SIZES as PAPER_FAMILIES
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.estimators.selection import (
    COMPARED,
    Score,
    held_out,
    select,
    usual_folds,
)
from pytest_neuralpower.platform.price import (
    NEURALPOWER,
    FamilyModel,
    FittedPlatform,
    PaperModel,
)
from pytest_neuralpower.platform.ranges import PROVENANCE_KEY as WIDTHS
from pytest_neuralpower.platform.ranges import calibrated_ranges, measured_widths

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import NetworkRow, Row
    from pytest_neuralpower.estimators import AnyEstimator


class Table(NamedTuple):
    """Measured rows of one family, with their columns and runtimes."""

    rows: Sequence[Row]
    columns: Columns
    runtime_ms: FloatArray


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
        Of ``calibration/<platform>/recipe.yaml``; where the rows are ours, with a profile in the
        same folder.
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
    calls, recipe = read_all_calls(recipe, data_root, progress)
    profiles = [
        read_profile(recipe.folder / source.profile) for source in recipe.sources if source.profile
    ]
    networks = [network for profile in profiles for network in profile.networks]
    fitted = fit_rows(
        rows,
        recipe,
        data_root=data_root,
        candidates=candidates,
        progress=progress,
        networks=networks,
        alone=not calls,
    )
    platform = fitted.platform
    if calls:
        platform = fit_calls(platform, calls, progress, one_kind=recipe.totals == "one kind")
    if recipe.totals == "in place":
        platform = learn_totals(platform, fitted.families, networks)
    return replace(fitted, platform=with_calibration(platform, profiles))


def fit_command(
    directory: Path,
    out: Path | None,
    *,
    data_root: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = _silent,
) -> tuple[Path, FittedPlatform]:
    """:func:`fit_recipe`, then save to ``out`` and write the folder's card.

    ``out`` is ``NAME.json`` by default: in the folder of a calibration, else here, where a file of
    that name is overwritten only if asked for: who wrote the recipe chose the name.
    Returns where the platform was saved, and what was.

    Raises
    ------
    As :func:`fit_recipe`; PlatformError where there is no folder to write ``out`` to;
    ProfileError where the card cannot be written.
    """
    recipe = read_recipe(directory)
    if out is not None and not out.parent.is_dir():
        raise PlatformError(f"--out {out}: there is no folder {out.parent}; make it first")
    name = Path(f"{recipe.name}.json")
    path = out or (directory / name if recipe.plan else name)
    if path == name and name.exists() and not (out or overwrite):
        raise PlatformError(f"{name} is there: name another in --out, or overwrite it with --force")
    fitted = fit_recipe(recipe, data_root=data_root, progress=progress)
    saved = fitted.platform.save(path)
    try:
        write_card(saved, directory)
        write_figure(fitted, directory)
    except OSError as error:
        raise ProfileError(f"{directory}: its card cannot be written ({error})") from None
    return path, saved


def read_rows(recipe: Recipe, data_root: Path | None) -> tuple[list[Row], Recipe]:
    """The sound rows of a recipe's sources, and the recipe with their numbers.

    Raises
    ------
    ProfileError
        A source cannot be read, or none of its rows is selected.
    """
    rows: list[Row] = []
    sources = []
    for source in recipe.sources:
        measured = read_source(recipe, source, data_root)
        flaws = Counter(row.flaw for row in measured if row.flaw)
        sound = [row for row in measured if not row.flaw]
        counts = {"rows": len(sound), "left_out": dict(sorted(flaws.items()))}
        sources.append(msgspec.structs.replace(source, **counts))
        rows += [replace(row, judges=True) for row in sound] if source.judges else sound
    return rows, msgspec.structs.replace(recipe, sources=tuple(sources))


def fit_rows(
    rows: Iterable[Row],
    recipe: Recipe,
    *,
    data_root: Path | None = None,
    candidates: Collection[str] = (),
    progress: Callable[[str], None] = _silent,
    networks: Sequence[NetworkRow] = (),
    alone: bool = True,
) -> Fitted:
    """Fit every family that the rows have, choosing each estimator by held-out shapes.

    Parameters are those of :func:`fit_recipe`; ``networks`` are whole networks that a calibration
    timed, and metered where their power is known; without ``alone`` there may be no row at all, as
    whole calls are evidence, too.

    Raises
    ------
    FitError
        No rows, or rows of some family that cannot be fitted; the message names the family.
    """
    tables = _tables(rows, recipe, alone=alone)
    priors = priors_for(
        recipe.device,
        recipe.hardware,
        recipe.dtype,
        calibration=recipe.folder.parent,
        data_root=data_root,
    )
    families, fits, accuracy = _fit_families(
        tables, recipe, priors, candidates=candidates, progress=progress
    )
    widths = measured_widths({name: tables[name].columns for name in families})
    platform = platform_of(recipe, priors, families)
    platform = msgspec.structs.replace(
        platform,
        provenance={**platform.provenance, WIDTHS: widths},
        accuracy=msgspec.to_builtins(accuracy),
    )
    known = [row for table in tables.values() for row in table.rows]
    platform = fit_power(
        platform,
        recipe,
        lambda other: fit_directory(other, data_root=data_root, candidates=candidates),
        transfer=lambda platform: transferred_power(
            platform,
            power_prior_for(recipe.device, calibration=recipe.folder.parent, data_root=data_root),
        ),
        rows=known,
        networks=networks,
    )
    platform = judge_networks(platform, recipe, known)
    return Fitted(with_intervals(platform, recipe, fits), fits)


def platform_of(
    recipe: Recipe, priors: Mapping[str, Prior], families: Mapping[str, FamilyModel]
) -> FittedPlatform:
    """What a recipe says of a device, priced by models and by priors, without power and intervals.

    Parameters
    ----------
    recipe
        No source of it is read.
    priors
        Of all families, at the device's ceilings.
    families
        Models of those that were measured; none on a device without a row.
    """
    return FittedPlatform(
        name=recipe.name,
        device=recipe.device,
        dtype=recipe.dtype,
        mode=recipe.mode,
        tiers=dict(recipe.tiers),
        hardware={name: float(value) for name, value in recipe.hardware.items()},
        families=dict(families),
        inferred={
            name: bounded(name, recipe, prior)
            for name, prior in priors.items()
            if name not in families
        },
        power=None,
        peaks_gflops={name: float(peak) for name, peak in recipe.peaks_gflops.items()},
        host=recipe.host,
        sampler=recipe.sampler,
        fused=recipe.fused,
        provenance={
            "sources": [source.facts() for source in (*recipe.sources, *recipe.calls)],
            "notes": list(recipe.notes),
        },
        accuracy={"runtime": {}},
    )


def bounded(name: str, recipe: Recipe, prior: Prior, inner: Estimator | None = None) -> Bounded:
    """An estimator of runtime that corrects how other devices run the family."""
    return Bounded(name, Ceilings.of(recipe.hardware), prior, inner)  # type: ignore[arg-type]


def _tables(rows: Iterable[Row], recipe: Recipe, *, alone: bool) -> dict[str, Table]:
    """The rows by family; raises FitError where there are none, or a bad one."""
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        own = FLOAT8 if is_float8(row.layer) and not recipe.dtype.startswith("float8") else ""
        by_family.setdefault(family(row.layer) + own, []).append(row)
    if not by_family and alone:
        raise FitError("no measured rows: nothing can be fitted")
    tables = {}
    for name, members in by_family.items():
        values = columns(name.removesuffix(FLOAT8), [row.layer for row in members])
        runtime = np.array([row.runtime_ms for row in members])
        try:
            refuse_bad_rows(values, runtime, [row.line for row in members])
        except FitError as error:
            raise FitError(f"{recipe.name}, {name}: {error}") from None
        tables[name] = Table(members, values, runtime)
    return tables


class _Families(NamedTuple):
    """The families that ship, what each was chosen by, and by section of a platform's accuracy and
    by family the errors of all."""

    models: dict[str, FamilyModel]
    fits: dict[str, FamilyFit]
    accuracy: dict[str, dict[str, object]]


def _fit_families(
    tables: Mapping[str, Table],
    recipe: Recipe,
    priors: Mapping[str, Prior],
    *,
    candidates: Collection[str],
    progress: Callable[[str], None],
) -> _Families:
    """Fit each family; raises FitError where one cannot be, or none is worth shipping."""
    streaming_gbs = _streaming_gbs(tables, recipe)
    found = _Families({}, {}, {"runtime": {}})
    for name, table in tables.items():
        plain, own = name.removesuffix(FLOAT8), recipe
        if plain != name:
            peak = recipe.peaks_gflops["float8_e4m3fn"]
            own = msgspec.structs.replace(recipe, hardware={**recipe.hardware, "peak_gflops": peak})
        prior = priors[plain].on(Ceilings.of(own.hardware))
        try:
            fit, power, judged = _fit_family(
                plain, table, own, prior, candidates=candidates, progress=progress
            )
        except FitError as error:
            if not recipe.plan:
                raise FitError(f"{recipe.name}, {name}: {error}") from None
            # Random networks bring some kinds of layer too rarely; the prior prices those.
            found.accuracy.setdefault("not_fitted", {})[name] = str(error)
            continue
        kept = judged.is_kept(alone="prior" if recipe.plan else "")
        found.accuracy.setdefault("runtime" if kept else "not_shipped", {})[name] = judged
        if not kept:
            continue
        found.fits[name] = fit
        if power is not None:
            section = found.accuracy.setdefault(f"layer_{power.quantity}", {})
            section[name] = power.selection.accuracy()
        paper = fit_paper(name, table, fit.runtime.predicted.get(NEURALPOWER))
        if paper is not None:
            found.accuracy.setdefault(NEURALPOWER, {})[name] = paper[1]
        found.models[name] = FamilyModel(
            calibrated_ranges(plain, table.columns),
            cast("AnyEstimator", fit.runtime.estimator),
            neuralpower=paper and paper[0],
            overheads=dict.fromkeys(recipe.overheads.get(plain, ()), 1.0 / streaming_gbs),
            **(power.chosen() if power else {}),
        )
    if tables and not found.models:
        raise FitError(f"{recipe.name}: no kind of layer could be fitted; measure longer")
    return found


def _fit_family(
    name: str,
    table: Table,
    recipe: Recipe,
    prior: Prior,
    *,
    candidates: Collection[str],
    progress: Callable[[str], None],
) -> tuple[FamilyFit, LayerPower | None, FamilyAccuracy]:
    """One family's choice of estimators, and its held-out errors next to the baselines'; next to
    the prior's, which would price it instead, on a device measured on the spot."""
    members, values, runtime = table
    design = recipe.designs.get(name, Design())
    allowed = candidates or design.candidates or recipe.candidates
    plain = {
        candidate: make
        for candidate, make in runtime_makers(name, design, recipe.hardware).items()
        if not allowed or candidate in (*allowed, Sparse.name)
    }
    makers = {
        # The paper's estimator is compared with as it was published.
        candidate: make
        if candidate in COMPARED
        else partial(_bounded_by, name, recipe, prior, make)
        for candidate, make in plain.items()
    }
    split = judge_split(members, values, runtime, makers)
    groups = [row.shape_group for row in members]
    progress(f"runtime of {len(members):,} {name} rows")
    chosen = select(makers, values, runtime, groups, lines=[row.line for row in members])
    overhead = judge_overhead(members, values, chosen, plain.get("physical"))
    progress(f"power of {len(members):,} {name} rows")
    power = fit_layer_power(name, members, values, chosen, design=design, hardware=recipe.hardware)
    baselines = baseline_scores(values, runtime, chosen.fold, recipe.hardware)
    if recipe.plan:
        baselines["prior"] = Score.of(bounded(name, recipe, prior).predict(values), runtime)
    selections = {power.quantity: power.selection} if power else {}
    return (
        FamilyFit(members, values, runtime, chosen, **selections),
        power,
        FamilyAccuracy(
            **chosen.accuracy(),
            baselines=baselines,
            split=split,
            overhead=overhead,
            held_out_by=tuple(name for name, _ in members[0].group),
        ),
    )


class PaperScore(msgspec.Struct, frozen=True):
    """How one of the paper's estimators does: on shapes held out, and on the rows themselves, which
    is what the paper prints.

    Attributes
    ----------
    degree, terms
        Of the polynomial, and how many of its coefficients are not 0.
    """

    degree: int
    terms: int
    held_out: Score | Refused
    fitted: Score


def fit_paper(
    name: str, table: Table, held_out_ms: FloatArray | None = None
) -> tuple[PaperModel, dict[str, PaperScore]] | None:
    """NeuralPower's own estimators of a family's runtime, and of its power where all rows have it.

    Parameters
    ----------
    name, table
        The family, and its rows.
    held_out_ms
        Runtime of each row (ms) by such an estimator without its shape, shape ``(rows,)``; None
        (default) to fit these here.

    Returns
    -------
    tuple or None
        The estimators, and their scores by quantity; None of a family that the paper does not have,
        or whose rows cannot be fitted.
    """
    if name not in PAPER_FAMILIES:
        return None
    groups = [row.shape_group for row in table.rows]
    power = [row.power_w for row in table.rows if row.power_w is not None]
    targets = {"runtime": table.runtime_ms}
    if len(power) == len(groups):
        targets["power"] = np.array(power)
    found: dict[str, NeuralPowerPolynomial] = {}
    scores: dict[str, PaperScore] = {}
    for quantity, target in targets.items():
        make = partial(NeuralPowerPolynomial, name, quantity)
        try:
            fitted = make().fit(table.columns, target)
        except FitError:
            continue

        def predicted(
            make: Callable[[], Estimator] = make, target: FloatArray = target
        ) -> FloatArray:
            return held_out(make, table.columns, target, usual_folds(groups), groups)

        known = held_out_ms if quantity == "runtime" else None
        found[quantity] = fitted
        scores[quantity] = PaperScore(
            fitted.degree_,
            len(fitted.coefficients_),
            scored(predicted, target) if known is None else Score.of(known, target),
            Score.of(fitted.predict(table.columns), target),
        )
    if "runtime" not in found:
        return None
    measured_w = (min(power), max(power)) if "power" in found else None
    return PaperModel(found["runtime"], found.get("power"), measured_w), scores


def _bounded_by(name: str, recipe: Recipe, prior: Prior, make: Callable[[], Estimator]) -> Bounded:
    return bounded(name, recipe, prior, make())


def _streaming_gbs(tables: Mapping[str, Table], recipe: Recipe) -> float:
    """Bandwidth that streaming layers reached in total; where there are none, the recipe's
    ``streaming_gbs``, what others of its layers reach with their weights, or the ceiling."""
    known = [tables[name] for name in STREAMING if name in tables]
    if not known:
        return float(recipe.hardware.get("streaming_gbs", recipe.hardware["bandwidth_gbs"]))
    total = sum(float(table.columns["bytes_moved"].sum()) for table in known)
    rate = total / sum(float(table.runtime_ms.sum()) for table in known) / 1e6
    return float(f"{rate:.6g}")
