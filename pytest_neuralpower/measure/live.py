"""``--np-measure``: every model that a test predicts is measured on the device, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import DeviceLost, OptionError, ReadingVoid
from pytest_neuralpower.measure.network import measure_call
from pytest_neuralpower.measure.preflight import Place, open_place
from pytest_neuralpower.measure.same_device import device_of, measured_here, mode_of
from pytest_neuralpower.reports.measured import comparison_record

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.prediction import Prediction

__all__ = ["Live"]


class Live:
    """The devices of one session, each opened on first use."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str, str], Place] = {}

    def place(self, platform: AnyPlatform) -> Place:
        """Where the platform's models are measured.

        Raises
        ------
        OptionError
            The platform was not measured on this machine's device.
        """
        try:
            chosen = measured_here(platform)
            device = device_of(chosen)
        except OptionError as error:
            raise OptionError(f"--np-measure: {error}") from None
        key = (device, chosen.dtype, mode_of(chosen))
        if key not in self._places:
            self._places[key] = open_place(device, chosen.dtype, mode=key[2], meter="auto")
        return self._places[key]

    def measure(
        self,
        model: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        platform: AnyPlatform,
        prediction: Prediction,
    ) -> dict[str, Any]:
        """Measured beside predicted, in JSON types.

        Raises
        ------
        OptionError
            As :meth:`place`.
        TraceError
            The model cannot be run there.
        """
        place = self.place(platform)
        try:
            measured = measure_call(model, args, kwargs, place)
        except (DeviceLost, ReadingVoid) as error:
            raise OptionError(f"--np-measure: {error}") from None
        return comparison_record(measured, prediction, place.facts["device"])
