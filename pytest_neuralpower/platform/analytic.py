"""The Eyeriss array as a platform, priced by formulas, and its JSON file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.eyeriss.energy import FUSED, NetworkLayer, network_energy
from pytest_neuralpower.eyeriss.hardware import (
    COST_TABLES,
    EYERISS,
    EYERISS_65NM,
    Bits,
    CostTable,
    Hardware,
    TypeCosts,
)
from pytest_neuralpower.layers import KINDS, Layer, Trace
from pytest_neuralpower.platform.file import check_name, content_hash
from pytest_neuralpower.platform.prediction import INFERRED, UNCOVERED, LayerPrediction, Prediction
from pytest_neuralpower.platform.protocol import Explanation, Summary
from pytest_neuralpower.units import is_finite

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.hardware import Zeros
    from pytest_neuralpower.units import Quantity

#: Where the model of the array was published; the cost table names its own source.
_MODEL_SOURCE = (
    "Yang, Chen, Sze, CVPR 2017, section 3; Chen, Emer, Sze, ISCA 2016, sections V and VI"
)


@dataclass(frozen=True)
class EyerissPlatform:
    """An Eyeriss-like array with one table of access costs. It knows energy, not runtime.

    Attributes
    ----------
    name
        What ``--np-platform`` takes, or what its file calls it.
    hardware, costs, bits
        Sizes of the array, energy of each access, widths of each data type.
    """

    name: str = "eyeriss"
    hardware: Hardware = EYERISS
    costs: CostTable = EYERISS_65NM
    bits: Bits = field(default_factory=Bits)

    mode: ClassVar[str] = "row-stationary, mapping of least energy per layer, no value zero"
    tiers: ClassVar[Mapping[str, str]] = {"power": "analytic"}
    #: Nothing was measured.
    provenance: ClassVar[Mapping[str, Any]] = {}
    analytic: ClassVar[bool] = True
    #: A product with a zero operand is skipped, and zeros are compressed.
    exploits_zeros: ClassVar[bool] = True

    @property
    def device(self) -> str:
        size = self.hardware
        return (
            f"Eyeriss-like array, {size.rows} x {size.columns} PEs, "
            f"{size.buffer_bytes / 1024:g} kB buffer, costs {self.costs.name}"
        )

    @property
    def dtype(self) -> str:
        """Of the weights, as the maps may have other widths."""
        return f"int{self.bits.weight}"

    def knows(self, quantity: Quantity) -> bool:
        """Energy alone."""
        return quantity == "energy"

    @property
    def energy_basis(self) -> str:
        """What an energy of this platform is, as predictions say it."""
        return f"array and DRAM at {self.costs.pj_per_mac:g} pJ a MAC, no idle"

    @cached_property
    def sha256(self) -> str:
        """Hash of all that its predictions depend on; baselines and reports quote it."""
        return content_hash(self.to_json())

    def predict(
        self, layers: Trace | Iterable[Layer], *, zeros: Mapping[str, Zeros] | None = None
    ) -> Prediction:
        """Price every layer of one call; dense data unless ``zeros`` counts the zeros by path.

        Raises
        ------
        TraceError
            There is no layer.
        EyerissError
            A layer cannot be mapped, or has more zeros than values.
        """
        items = layers.layers if isinstance(layers, Trace) else tuple(layers)
        if not items:
            raise TraceError("nothing to predict: the trace has no layer")
        priced = network_energy(
            items, bits=self.bits, zeros=zeros, costs=self.costs, hardware=self.hardware
        )
        predicted = Prediction(
            tuple(map(_layer_prediction, priced)),
            self.name,
            self.sha256,
            energy_basis=self.energy_basis,
        )
        if not isinstance(layers, Trace):
            return predicted
        return replace(
            predicted,
            batch=layers.batch,
            model=layers.model,
            tokens=layers.tokens,
            route=layers.route,
            notes=layers.notes,
        )

    def explain(self, kind: str) -> Explanation:
        """How layers of one kind are priced, and what each access costs.

        Raises
        ------
        PlatformError
            There is no such kind of layer; one line names those there are.
        """
        if kind not in KINDS:
            raise PlatformError(f"unknown kind of layer {kind!r}; known: {', '.join(KINDS)}")
        costs, bits = self.costs, self.bits
        rows: list[tuple[str | float | None, ...]] = [
            (name.replace("_", " "), level.input_map, level.weight, level.output_map)
            for name, level in ((name, getattr(costs, name)) for name in _LEVELS)
        ]
        return Explanation(
            (f"{kind} on {self.name}", self.device),
            _how_priced(kind),
            costs=(*rows, ("MAC", costs.mac, None, None)),
            remarks=(
                f"in 16-bit multiply-accumulates (MACs) of {costs.pj_per_mac:g} pJ, for 16 "
                "bits; linear in the bits",
                f"bits: input map {bits.input_map}, weight {bits.weight}, output map "
                f"{bits.output_map}; runtime is not modelled",
                *textwrap.wrap(f"costs: {costs.source}", 80, break_long_words=False),
            ),
        )

    def summary(self) -> Summary:
        """What ``neuralpower platforms`` lists."""
        return Summary(
            name=self.name,
            device=self.device,
            dtype=self.dtype,
            mode=self.mode,
            tiers=self.tiers,
            hardware=asdict(self.hardware),
            costs=asdict(self.costs),
            bits=asdict(self.bits),
            sources=(_MODEL_SOURCE, self.costs.source),
            held_out={},
            sha256=self.sha256,
        )

    def to_json(self) -> dict[str, object]:
        """The platform as plain data, without its hash: the fields of its file, all spelled out."""
        return asdict(self)


def _layer_prediction(priced: NetworkLayer) -> LayerPrediction:
    flags: tuple[str, ...] = ()
    if not priced.layer.covered:
        flags = (UNCOVERED,)
    elif priced.how == "unmapped":
        flags = (INFERRED,)
    return LayerPrediction(
        priced.layer,
        runtime_ms=None,
        power_w=None,
        energy_mj=priced.energy.millijoules,
        estimator=priced.how,
        flags=flags,
        energy_parts_mj=priced.energy.parts_mj,
    )


# -- How one kind of layer is priced, in words.

#: Kinds of layers that the array computes (convert.works), and as what.
_MAPPED: Final = {
    "conv": "as a convolution (a transposed one: over the map with zeros put in)",
    "linear": "as a 1 x 1 convolution over the tokens of each sample",
    "matmul": "as a 1 x 1 convolution, one group a matrix, the right operand as weights",
    "attention": "as its two matrix products",
}

_EQUATIONS: Final = """\
energy = computation + input_map + output_map + weight
  computation = MACs x (1 - zero inputs) x (1 - zero weights) x cost of a MAC
  each of the others = sum over the memories of accesses x cost of an access

The accesses are those of the row-stationary mapping of least energy that fits
the array, searched for each layer and batch. A product with a zero operand is
skipped; zeros of input map and weight are not moved, those of the output map
not to DRAM."""


def _how_priced(kind: str) -> tuple[str, ...]:
    if kind in _MAPPED:
        return (f"priced {_MAPPED[kind]}:", "", *_EQUATIONS.splitlines())
    if kind in FUSED:
        return (
            "priced on the way of the preceding layer's output: each value is read from",
            "and written to a register file, nothing else moves",
        )
    if kind == "rnn":
        return (
            "has no mapping, as its steps depend on each other; priced without reuse",
            "(flagged F): each product reads both operands from the buffer, and its maps",
            "and weights cross every memory once",
        )
    return ("computes nothing on the array; each of its values crosses every memory once",)


# -- The file: short JSON that people write, where all but ``format`` has a default.
#
#     {"format": "pytest-neuralpower eyeriss",
#      "bits": {"input_map": 8, "weight": 8, "output_map": 16},
#      "costs": "accelergy-40nm"}
#
# ``costs`` is the name of a known table or a table with every field of
# :class:`~pytest_neuralpower.eyeriss.hardware.CostTable`, where one number prices all data types.

FORMAT: Final = "pytest-neuralpower eyeriss"

_FIELDS: Final = ("format", "name", "hardware", "costs", "bits")
_Sizes = TypeVar("_Sizes", Hardware, Bits)
_LEVELS: Final = ("register_file", "array", "buffer", "dram")


def parse_platform(path: Path, data: Mapping[str, Any]) -> EyerissPlatform:
    """The platform that a file's content describes; its name defaults to the file's.

    Raises
    ------
    PlatformError
        A field is missing, unknown, or no positive number; one line names it.
    """
    try:
        _no_others(data, _FIELDS, "field")
        name = data.get("name", path.stem)
        if not isinstance(name, str):
            raise ValueError(f"name must be a string, not {name!r}")
        check_name(name)
        return EyerissPlatform(
            name,
            _sizes(data.get("hardware", {}), Hardware, "hardware"),
            _costs(data.get("costs", EYERISS_65NM.name)),
            _sizes(data.get("bits", {}), Bits, "bits"),
        )
    except ValueError as error:
        raise PlatformError(f"platform file {path}: {error}; correct it") from None


def _sizes(data: object, kind: type[_Sizes], where: str) -> _Sizes:
    """A dataclass of whole numbers from 1, with a fraction or a boolean where its default is."""
    defaults = {each.name: each.default for each in fields(kind)}
    found = _mapping(data, where)
    _no_others(found, tuple(defaults), where)
    for name, value in found.items():
        default = defaults[name]
        if type(default) is int and not (type(value) is int and value >= 1):
            raise ValueError(f"{where} {name} must be a whole number from 1, not {value!r}")
        if type(default) is float:
            _positive(value, f"{where} {name}")
        if type(default) is bool and type(value) is not bool:
            raise ValueError(f"{where} {name} must be true or false, not {value!r}")
    return kind(**found)


def _costs(data: Any) -> CostTable:
    if isinstance(data, str):
        if data not in COST_TABLES:
            raise ValueError(f"unknown costs {data!r}; known: {', '.join(COST_TABLES)}")
        return COST_TABLES[data]
    names = tuple(each.name for each in fields(CostTable))
    found = _mapping(data, "costs")
    _no_others(found, names, "costs")
    missing = sorted(set(names) - {"mac"} - set(found))
    if missing:
        raise ValueError(f"costs need the field {missing[0]!r}")
    for name in ("name", "source"):
        if not isinstance(found[name], str) or not found[name]:
            raise ValueError(f"costs {name} must be a string, not {found[name]!r}")
    register_file, array, buffer, dram = (
        _level(found[level], f"costs {level}") for level in _LEVELS
    )
    return CostTable(
        found["name"],
        found["source"],
        register_file,
        array,
        buffer,
        dram,
        pj_per_mac=_positive(found["pj_per_mac"], "costs pj_per_mac"),
        mac=_positive(found.get("mac", 1.0), "costs mac"),
    )


def _level(data: Any, where: str) -> TypeCosts:
    """One number for all data types, or one each."""
    if not isinstance(data, dict):
        return TypeCosts.same(_positive(data, where))
    names = tuple(each.name for each in fields(TypeCosts))
    if sorted(data) != sorted(names):
        raise ValueError(f"{where} must be a number or have {', '.join(names)}, not {data!r}")
    return TypeCosts(**{name: _positive(data[name], f"{where} {name}") for name in names})


def _positive(value: Any, where: str) -> float:
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{where} must be a number above 0, not {value!r}")
    return float(value)


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {data!r}")
    return data


def _no_others(data: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(data) - set(allowed))
    if unknown:
        raise ValueError(f"unknown {where} {unknown[0]!r}; allowed: {', '.join(allowed)}")
