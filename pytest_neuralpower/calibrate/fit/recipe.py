"""Recipes: how a platform is made of measured rows. YAML, one a platform in ``calibration/``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from pytest_neuralpower.calibrate.fit.designs import Candidate, Design
from pytest_neuralpower.calibrate.fit.devices import find_device
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.estimators.features import FAMILIES
from pytest_neuralpower.files import decode, read_text, read_yaml
from pytest_neuralpower.layers import ITEMSIZE
from pytest_neuralpower.platform.file import check_name
from pytest_neuralpower.platform.fusion import Fused
from pytest_neuralpower.platform.prediction import Host, TokenSampler
from pytest_neuralpower.units import is_finite

#: How a quantity can be known.
Tier = Literal["measured", "public", "transferred", "inferred", "datasheet", "estimated"]

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where measured rows come from: a ``profile``, or a ``reader`` and the ``path`` of its table.

    Attributes
    ----------
    title, url, license, commit, note
        Copied to the platform's provenance.
    profile
        A profile, relative to the recipe.
    reader, path
        Name of a reader, and its table, relative to the public tables.
    datasheet
        Device of the device file that the rows were measured on, where that is a sibling of the
        platform's: their times are scaled by what both can at most do.
    judges
        Whether its rows are set apart to judge a fit to the other rows first.
    options
        What the reader takes: all fields as they are written.
    rows, left_out
        Number of rows used and, by reason, of those left out; known once they were read.
    """

    title: _Text | UnsetType = UNSET
    url: str | UnsetType = UNSET
    license: str | UnsetType = UNSET
    commit: str | UnsetType = UNSET
    note: str | UnsetType = UNSET
    rows: int | UnsetType = UNSET
    left_out: Mapping[str, int] | UnsetType = UNSET
    profile: _Text | None = None
    reader: _Text | None = None
    path: _Text = ""
    datasheet: _Text | None = None
    judges: bool = False
    options: Mapping[str, Any] = {}

    @property
    def stack(self) -> str:
        """What ran the rows: tables of one publisher come of one library and machine."""
        return self.path.split("/", maxsplit=1)[0] or "profile"

    def facts(self) -> Mapping[str, Any]:
        """What a platform's provenance keeps of it."""
        names = ("title", "url", "license", "commit", "note", "rows", "left_out")
        return {name: known for name in names if (known := getattr(self, name)) is not UNSET}


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How power is known that neither the rows nor other boards tell.

    Attributes
    ----------
    networks, fixed
        A file of measured networks to fit the terms to, and terms (W) that are not fitted.
    other
        ``from``: the calibration folder, next to this one, whose power model is taken.
    watts
        What the user said that every layer draws.
    """

    networks: _Text | None = None
    fixed: Mapping[str, Annotated[float, msgspec.Meta(ge=0)]] = {}
    other: _Text | None = msgspec.field(default=None, name="from")
    watts: _Positive | None = None


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to fit from which rows.

    Attributes
    ----------
    name, device, dtype, mode, tiers
        As in :class:`~pytest_neuralpower.platform.price.FittedPlatform`.
    datasheet
        Name of a device in the device file (``platform/devices.yaml``): ``device``, ``hardware``
        and ``peaks_gflops`` are those of the file where they are not given.
    hardware
        ``peak_gflops`` and ``bandwidth_gbs`` are required; ``multiprocessors`` (1), ``limit_w``
        and ``idle_w`` are used where given: power without a meter of its own needs the last two.
    peaks_gflops
        Operations (GFLOP/s) by dtype.
    host
        What the framework's host takes to launch a layer, where calls wait for it.
    sampler
        What a serving engine takes to draw tokens.
    fused
        What the mode joins: ``pointwise``, layers that stream their tensors, as compilers do;
        ``folded``, also what follows a convolution or linear layer, as engines do.
    sources
        Of the measured rows.
    calls
        Of whole calls of networks, by a reader of
        :data:`~pytest_neuralpower.calibrate.fit.calls.READERS`.
    designs
        Candidates by family, where they differ from the defaults of
        :mod:`pytest_neuralpower.calibrate.fit.designs`.
    candidates
        Of the families whose design names none; empty for all.
    overheads
        By family, the terms of traffic (MB) that the execution mode adds to the measured
        kernels; priced at the bandwidth that streaming layers reached.
    power
        How power is known where the rows do not have it; None (default) for rows with power, and
        for GPUs that are to have the power that other boards drew.
    networks
        File of whole measured networks to judge the platform by.
    totals
        What tells how far a call is from the sum of its layers: ``networks`` (the default where
        there are any; they must have run in this mode), or how the rows were timed: ``alone``
        (the other default) or ``in place``, inside networks. ``one kind``: the whole calls are of
        networks of one kind, which do not tell how alike the errors of others' layers are.
    plan
        What ``neuralpower calibrate`` measured: arguments of
        :func:`pytest_neuralpower.calibrate.measure.plan.make_plan`.
    notes
        Sentences for the card: what a reader must know before trusting the platform.
    """

    name: _Text
    mode: _Text
    device: str = ""
    datasheet: _Text | None = None
    hardware: Mapping[str, int | float] = {}  # a whole number stays one in the platform file
    dtype: _Text = "float32"
    tiers: Mapping[str, Tier] = {}
    peaks_gflops: Mapping[str, int | float] = {}
    host: Host | None = None
    sampler: TokenSampler | None = None
    fused: Fused = ""
    sources: tuple[Source, ...] = ()
    calls: tuple[Source, ...] = ()
    designs: Mapping[str, Design] = {}
    candidates: tuple[Candidate, ...] = ()
    overheads: Mapping[str, tuple[str, ...]] = {}
    power: Power | None = None
    networks: str = ""
    totals: Literal["alone", "in place", "networks", "one kind"] | None = None
    plan: Mapping[str, Any] = {}
    notes: tuple[_Text, ...] = ()
    folder: Path = Path()


_RENEW: Final = "correct the recipe"

#: Of the model of power.
_TERMS: Final = ("base_w", "compute_w", "bandwidth_w")


def read_recipe(directory: Path) -> Recipe:
    """The recipe of a calibration folder.

    Raises
    ------
    ProfileError
        There is none, or it is not a recipe.
    """
    if directory.is_file():
        raise ProfileError(
            f"{directory} is a file: give the folder with recipe.yaml, {directory.parent}"
        )
    path = directory / "recipe.yaml"
    if not path.exists():
        raise ProfileError(
            f"{path}: there is no recipe; give the folder that `neuralpower calibrate NAME` wrote"
        )
    text = read_text(path, file=f"recipe {path}", error=ProfileError)
    data = read_yaml(text, file=f"recipe {path}", error=ProfileError, renew=_RENEW)
    if isinstance(data, dict):  # a field that is there and empty is as one that is not
        data = {name: value for name, value in data.items() if value is not None}
    recipe = decode(Recipe, data, file=f"recipe {path}", error=ProfileError, renew=_RENEW)
    recipe = _with_datasheet(recipe, path)
    if not recipe.device:
        raise ProfileError(f"recipe {path}: field 'device' is missing; {_RENEW}")
    for problem in _problems(recipe):
        raise ProfileError(f"recipe {path}: {problem}; {_RENEW}")
    with_options: dict[str, tuple[Source, ...]] = {
        name: tuple(
            msgspec.structs.replace(source, options=options)
            for source, options in zip(getattr(recipe, name), data.get(name, ()), strict=True)
        )
        for name in ("sources", "calls")
    }
    return msgspec.structs.replace(recipe, folder=directory, **with_options)


def _with_datasheet(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with what the device file says, where the recipe does not."""
    if recipe.datasheet is None:
        return recipe
    try:
        known = find_device(recipe.datasheet)
    except ProfileError as error:
        raise ProfileError(f"recipe {path}: {error}; {_RENEW}") from None
    return msgspec.structs.replace(
        recipe,
        device=recipe.device or known.device,
        hardware={**known.hardware(recipe.dtype), **recipe.hardware},
        peaks_gflops={**known.peaks_gflops, **recipe.peaks_gflops},
    )


def _problems(recipe: Recipe) -> Iterator[str]:
    """What a type does not say of a recipe's fields."""
    try:
        check_name(recipe.name)
    except ValueError as error:
        yield str(error)
    for ceiling in ("peak_gflops", "bandwidth_gbs"):
        if ceiling not in recipe.hardware:
            yield f"hardware needs {ceiling!r}"
    figures = {f"hardware.{name}": value for name, value in recipe.hardware.items()}
    figures |= {f"peaks_gflops.{dtype}": value for dtype, value in recipe.peaks_gflops.items()}
    for name, value in figures.items():
        if not (is_finite(value) and value > 0):
            yield f"{name} must be a number above 0, not {value!r}"
    for number, source in enumerate((*recipe.sources, *recipe.calls), 1):
        if not source.profile and not (source.reader and source.path):
            yield f"source {number} needs a 'profile', or a 'reader' and a 'path'"
    keys: tuple[tuple[str, Iterable[str], tuple[str, ...]], ...] = (
        ("tiers", recipe.tiers, ("runtime", "power")),
        ("peaks_gflops", recipe.peaks_gflops, (*ITEMSIZE, "tf32")),
        ("designs", recipe.designs, FAMILIES),
        ("overheads", recipe.overheads, FAMILIES),
        ("power.fixed", recipe.power.fixed if recipe.power else (), _TERMS),
    )
    for field, used, allowed in keys:
        for key in used:
            if key not in allowed:
                yield f"{field}: {key!r} is not one of {', '.join(allowed)}"
