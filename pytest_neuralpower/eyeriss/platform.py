"""The array as a platform: the same face as a fitted one, priced by formulas instead of fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.eyeriss.hardware import EYERISS, EYERISS_65NM, Bits, CostTable, Hardware
from pytest_neuralpower.eyeriss.network import NetworkLayer, network_energy
from pytest_neuralpower.layers import Layer, Trace
from pytest_neuralpower.platform_file import content_hash
from pytest_neuralpower.prediction import FALLBACK, UNCOVERED, LayerPrediction, Prediction

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.shapes import Zeros

__all__ = ["EyerissPlatform"]

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

    @property
    def mode(self) -> str:
        return "row-stationary, mapping of least energy per layer, no value zero"

    @property
    def tiers(self) -> dict[str, str]:
        return {"power": "analytic"}

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
        call: dict[str, Any] = {}
        if isinstance(layers, Trace):
            call = {name: getattr(layers, name) for name in ("batch", "model", "route", "notes")}
        return Prediction(
            tuple(map(_layer_prediction, priced.layers)),
            self.name,
            self.sha256,
            energy_basis=self.energy_basis,
            **call,
        )

    def summary(self) -> dict[str, Any]:
        """What ``neuralpower platforms`` lists, in JSON types."""
        return {
            **{name: getattr(self, name) for name in ("name", "device", "dtype", "mode", "tiers")},
            **{name: asdict(getattr(self, name)) for name in ("hardware", "costs", "bits")},
            "sources": [_MODEL_SOURCE, self.costs.source],
            "held_out": {},
            "networks": None,
            "power": None,
            "intervals": None,
            "sha256": self.sha256,
        }

    def to_json(self) -> dict[str, Any]:
        """The platform as plain data, without its hash: the fields of its file, all spelled out."""
        return asdict(self)


def _layer_prediction(priced: NetworkLayer) -> LayerPrediction:
    flags: tuple[str, ...] = ()
    if not priced.layer.covered:
        flags = (UNCOVERED,)
    elif priced.how == "unmapped":
        flags = (FALLBACK,)
    return LayerPrediction(
        priced.layer,
        runtime_ms=None,
        power_w=None,
        energy_mj=priced.energy.millijoules,
        estimator=priced.how,
        flags=flags,
        energy_parts_mj=priced.energy.parts_mj,
    )
