"""The array as a platform: the same face as a fitted one, priced by formulas instead of fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.eyeriss.hardware import (
    EYERISS,
    EYERISS_65NM,
    Bits,
    CostTable,
    Hardware,
    TypeCosts,
)
from pytest_neuralpower.eyeriss.network import NetworkLayer, network_energy
from pytest_neuralpower.layers import Layer, Trace
from pytest_neuralpower.prediction import FALLBACK, UNCOVERED, LayerPrediction, Prediction

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.shapes import Zeros

__all__ = ["EyerissPlatform"]

_NOTE: Final = (
    "energy is that of the array and its DRAM in fixed point; time counts multiply cycles alone"
)


@dataclass(frozen=True, slots=True)
class EyerissPlatform:
    """An Eyeriss-like array with one table of access costs.

    Attributes
    ----------
    name, device, mode, tiers, provenance, accuracy, sha256
        As in :class:`~pytest_neuralpower.platform.Platform`.
    hardware, costs, bits
        Sizes of the array, energy of each access, widths of each data type.
    """

    name: str = "eyeriss"
    device: str = "Eyeriss-like array, 12 x 14 PEs, 108 kB buffer"
    mode: str = "row-stationary, mapping of least energy per layer"
    hardware: Hardware = EYERISS
    costs: CostTable = EYERISS_65NM
    bits: Bits = field(default_factory=Bits)
    tiers: Mapping[str, str] = field(
        default_factory=lambda: {"runtime": "analytic", "power": "analytic"}
    )
    provenance: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def dtype(self) -> str:
        return f"int{self.bits.weight}"

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
        predicted = tuple(_layer_prediction(each) for each in priced.layers)
        if not isinstance(layers, Trace):
            return Prediction(predicted, self.name, self.sha256, notes=(_NOTE,))
        return Prediction(
            predicted,
            self.name,
            self.sha256,
            batch=layers.batch,
            model=layers.model,
            route=layers.route,
            notes=(*layers.notes, _NOTE),
        )

    def summary(self) -> dict[str, Any]:
        """What ``neuralpower platforms`` lists, in JSON types."""
        return {
            "name": self.name,
            "device": self.device,
            "dtype": self.dtype,
            "mode": self.mode,
            "tiers": dict(self.tiers),
            "costs": asdict(self.costs),
            "sources": list(self.provenance.get("sources", ())),
            "held_out": {},
            "networks": None,
            "power": None,
            "accuracy": dict(self.accuracy),
            "sha256": self.sha256,
        }

    def to_json(self) -> dict[str, Any]:
        """The platform as plain data, without its hash."""
        content = asdict(self)
        del content["sha256"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], sha256: str) -> EyerissPlatform:
        """The platform that :meth:`to_json` described.

        Raises
        ------
        PlatformError
            A field is missing, unknown or of a wrong type.
        """
        try:
            costs = dict(content["costs"])
            for level in ("register_file", "array", "buffer", "dram"):
                costs[level] = TypeCosts(**costs[level])
            return cls(
                **{
                    **content,
                    "hardware": Hardware(**content["hardware"]),
                    "costs": CostTable(**costs),
                    "bits": Bits(**content["bits"]),
                },
                sha256=sha256,
            )
        except (KeyError, TypeError) as error:
            raise PlatformError(f"analytic platform: {error}; write it anew") from None


def _layer_prediction(priced: NetworkLayer) -> LayerPrediction:
    flags: tuple[str, ...] = ()
    if not priced.layer.covered:
        flags = (UNCOVERED,)
    elif priced.how == "unmapped":
        flags = (FALLBACK,)
    energy_mj, runtime_ms = priced.energy.millijoules, priced.runtime_s * 1e3
    # Moving data takes energy but, in this model, no time of its own: such a layer has no power.
    power_w = energy_mj / runtime_ms if runtime_ms else None
    return LayerPrediction(priced.layer, runtime_ms, power_w, energy_mj, priced.how, flags)
