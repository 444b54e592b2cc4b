"""What every platform can be asked, whether it was fitted to measured rows or is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from msgspec import UNSET, Struct, UnsetType, field

from pytest_neuralpower.estimators import Estimator

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.hardware import Zeros
    from pytest_neuralpower.layers import Layer, Trace
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.units import Quantity


class Equation(Struct, frozen=True):
    """One fitted equation of a family of layers.

    Attributes
    ----------
    quantity
        ``runtime`` (ms), ``power`` (W) or ``energy`` (mJ).
    estimator
        What predicts it.
    known
        How it is known and how far it was off, in words; empty where that is not known.
    overheads
        What the execution mode adds: ms per unit of a physical term.
    power_range_w
        The range (W) within which power, or energy over runtime, is kept.
    title
        What it is, where it does not price by default.
    """

    quantity: str
    estimator: Estimator
    known: str
    overheads: Mapping[str, float] = field(default_factory=dict)
    power_range_w: tuple[float, float] | None = None
    title: str = ""


class Explanation(Struct, frozen=True):
    """How a platform prices one family of layers, for a report to lay out.

    Attributes
    ----------
    title
        Which family on which platform.
    text
        What is not an equation, line by line.
    equations
        The family's fitted equations.
    costs
        Cost of one access to each memory by data type, of an array whose energy is computed.
    remarks
        What to know of ``costs``, line by line.
    """

    title: tuple[str, ...]
    text: tuple[str, ...] = ()
    equations: tuple[Equation, ...] = ()
    costs: tuple[tuple[str | float | None, ...], ...] = ()
    remarks: tuple[str, ...] = ()


class HeldOut(Struct, frozen=True):
    """The estimator of one family: how many rows it has, and its held-out error (MAPE, %)."""

    rows: int
    estimator: str
    mape_percent: float


class Summary(Struct, frozen=True, kw_only=True):
    """What ``neuralpower platforms`` lists of a platform.

    Attributes
    ----------
    name, device, dtype, mode, tiers, sha256
        As the platform has them.
    hardware, costs, bits
        Of an array whose energy is computed; unset for a fitted platform.
    sources
        Titles of the sources of its rows, or of its formulas.
    held_out, held_out_power, held_out_energy
        Of runtime, power and energy, by family; unset where there can be none.
    neuralpower
        Of the NeuralPower paper's estimators, by family and quantity: degree, terms, and RMSPE (%)
        held out and on the rows themselves; unset for a platform without.
    networks, calls, power, intervals
        The platform file's accuracy on whole networks, on calls that it was fitted to, of power,
        and of intervals, if any.
    """

    name: str
    device: str
    dtype: str
    mode: str
    tiers: Mapping[str, str]
    hardware: Mapping[str, object] | UnsetType = UNSET
    costs: Mapping[str, object] | UnsetType = UNSET
    bits: Mapping[str, object] | UnsetType = UNSET
    sources: tuple[str, ...]
    held_out: Mapping[str, HeldOut]
    held_out_power: Mapping[str, HeldOut] | UnsetType = UNSET
    held_out_energy: Mapping[str, HeldOut] | UnsetType = UNSET
    neuralpower: Mapping[str, Mapping[str, Mapping[str, object]]] | UnsetType = UNSET
    networks: Mapping[str, Any] | None = None
    calls: Mapping[str, Any] | None = None
    power: Mapping[str, Any] | None = None
    intervals: Mapping[str, Any] | None = None
    sha256: str


@runtime_checkable
class Platform(Protocol):
    """Prices layers on one device: what :func:`~pytest_neuralpower.load_platform` returns.

    Attributes
    ----------
    name
        What ``--np-platform`` takes.
    device, dtype, mode
        The device; the dtype its layers are computed in; how they run, in words.
    tiers
        How each quantity is known: ``measured``, ``public``, ``analytic``, ...
    provenance
        Sources of measured rows; empty of a computed platform.
    energy_basis
        What an energy of this platform is, in words.
    sha256
        Hash of all that predictions depend on; baselines and reports quote it.
    analytic
        Whether prices are computed by formulas instead of fitted to rows.
    exploits_zeros
        Whether zero values cost less than others.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def tiers(self) -> Mapping[str, str]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    @property
    def energy_basis(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def analytic(self) -> bool: ...
    @property
    def exploits_zeros(self) -> bool: ...

    def knows(self, quantity: Quantity) -> bool:
        """Whether predictions have the quantity."""
        ...

    def predict(
        self, layers: Trace | Iterable[Layer], *, zeros: Mapping[str, Zeros] | None = None
    ) -> Prediction:
        """Predict every layer and, as their sum, the call.

        Parameters
        ----------
        layers
            A trace (its batch, model, route and notes are copied) or any layers in order.
        zeros
            Zero values by layer path; dense data by default. Without effect where the platform
            does not exploit zeros.

        Raises
        ------
        TraceError
            There is no layer: a total of 0 would be wrong.
        """
        ...

    def explain(self, kind: str) -> Explanation:
        """How layers of one kind (or family) are priced.

        Raises
        ------
        PlatformError
            There is no such kind of layer; one line names those there are.
        """
        ...

    def summary(self) -> Summary:
        """What ``neuralpower platforms`` lists."""
        ...
