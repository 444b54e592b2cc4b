"""Shape of one convolution as the row-stationary array sees it; zeros of its data."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pytest_neuralpower.eyeriss.errors import EyerissError

__all__ = ["ConvShape", "Zeros"]


@dataclass(frozen=True, slots=True)
class Zeros:
    """How many values of each data type are zero: maps over the whole batch, weights of a layer.

    Only the non-zero values are moved and only products of two of them are computed
    (Yang, Chen, Sze, CVPR 2017, section 3).
    """

    input_map: int = 0
    weight: int = 0
    output_map: int = 0


@dataclass(frozen=True, slots=True)
class ConvShape:
    """One convolution of one sample. A fully connected layer is one with ``kernel`` = map.

    Attributes
    ----------
    height, width, channels
        Input map, all groups together, without padding.
    filters
        Output channels, all groups together.
    kernel, stride, dilation
        Each ``(y, x)``.
    padding
        ``(top, bottom, left, right)``.
    groups
        Channels and filters are split into this many independent convolutions.

    Raises
    ------
    EyerissError
        The shape has no output, a size below one, or groups that do not divide the channels.
    """

    height: int
    width: int
    channels: int
    filters: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "padding" else 1
            for number in value if isinstance(value, tuple) else (value,):
                if number < least:
                    raise EyerissError(f"{each.name} is {value}: it must be at least {least}")
        if self.channels % self.groups or self.filters % self.groups:
            raise EyerissError(
                f"groups = {self.groups} must divide channels = {self.channels} and "
                f"filters = {self.filters}"
            )
        if self.out_height < 1 or self.out_width < 1:
            raise EyerissError(
                f"kernel {self.kernel} with dilation {self.dilation} does not fit the padded "
                f"input map {self.height} x {self.width}: use a smaller kernel or more padding"
            )

    @property
    def out_height(self) -> int:
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[1] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[2] + self.padding[3] - reach) // self.stride[1] + 1

    @property
    def inputs(self) -> int:
        """Values of one sample's input map."""
        return self.height * self.width * self.channels

    @property
    def outputs(self) -> int:
        """Values of one sample's output map."""
        return self.out_height * self.out_width * self.filters

    @property
    def weights(self) -> int:
        """Weights, without bias."""
        return self.filters * (self.channels // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, those with padding included."""
        return self.out_height * self.out_width * self.weights
