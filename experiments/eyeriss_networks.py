"""Shapes and published zero shares of the networks that the energy-aware pruning paper prices."""

from __future__ import annotations

from pytest_neuralpower.eyeriss import ConvShape


def conv(
    size: int,
    channels: int,
    filters: int,
    kernel: int,
    *,
    stride: int = 1,
    pad: int = 0,
    groups: int = 1,
) -> ConvShape:
    return ConvShape(
        size, size, channels, filters, (kernel, kernel), (stride, stride), (pad,) * 4,
        groups=groups,
    )  # fmt: skip


#: Krizhevsky et al., NIPS 2012 (two groups), 227 x 227 input, as in Caffe.
ALEXNET = {
    "conv1": conv(227, 3, 96, 11, stride=4),
    "conv2": conv(27, 96, 256, 5, pad=2, groups=2),
    "conv3": conv(13, 256, 384, 3, pad=1),
    "conv4": conv(13, 384, 384, 3, pad=1, groups=2),
    "conv5": conv(13, 384, 256, 3, pad=1, groups=2),
    "fc1": conv(6, 256, 4096, 6),
    "fc2": conv(1, 4096, 4096, 1),
    "fc3": conv(1, 4096, 1000, 1),
}

#: Non-zero share of each layer's output: Han et al., "Learning both Weights and Connections",
#: NIPS 2015, Table 4 ("Act%"). The paper's own pruning baseline.
ALEXNET_ACTIVE_HAN = (0.88, 0.52, 0.37, 0.40, 0.34, 0.36, 0.40, 1.0)

#: Zero share of the conv layers' inputs measured on the chip: Chen et al., JSSC 2017, Table V.
#: The fully connected layers, which the chip did not run, keep Han's.
ALEXNET_INPUT_ZEROS_JSSC = (0.0001, 0.387, 0.725, 0.793, 0.776, 0.66, 0.64, 0.60)

#: Share of weights that energy-aware pruning removes (Yang et al., CVPR 2017).
ALEXNET_REMOVED = (0.83, 0.92, 0.91, 0.81, 0.74, 0.92, 0.91, 0.78)

#: Energy of each layer in 1e8 MAC units, digitised from Yang et al., CVPR 2017 (+-3%).
ALEXNET_PAPER = (7.0, 10.6, 5.3, 3.35, 2.3, 7.55, 3.25, 0.26)
ALEXNET_PAPER_PRUNED = (2.2, 2.6, 1.5, 1.4, 1.1, 1.06, 0.49, 0.09)


def _inception(size: int, channels: int, *widths: int) -> list[ConvShape]:
    n1, r3, n3, r5, n5, pool = widths
    return [
        conv(size, channels, n1, 1),
        conv(size, channels, r3, 1),
        conv(size, r3, n3, 3, pad=1),
        conv(size, channels, r5, 1),
        conv(size, r5, n5, 5, pad=2),
        conv(size, channels, pool, 1),
    ]


#: Szegedy et al., CVPR 2015, Table 1.
GOOGLENET = [
    conv(224, 3, 64, 7, stride=2, pad=3),
    conv(56, 64, 64, 1),
    conv(56, 64, 192, 3, pad=1),
    *_inception(28, 192, 64, 96, 128, 16, 32, 32),
    *_inception(28, 256, 128, 128, 192, 32, 96, 64),
    *_inception(14, 480, 192, 96, 208, 16, 48, 64),
    *_inception(14, 512, 160, 112, 224, 24, 64, 64),
    *_inception(14, 512, 128, 128, 256, 24, 64, 64),
    *_inception(14, 512, 112, 144, 288, 32, 64, 64),
    *_inception(14, 528, 256, 160, 320, 32, 128, 128),
    *_inception(7, 832, 256, 160, 320, 32, 128, 128),
    *_inception(7, 832, 384, 192, 384, 48, 128, 128),
    conv(1, 1024, 1000, 1),
]


def _fire(size: int, channels: int, squeeze: int, expand: int) -> list[ConvShape]:
    return [
        conv(size, channels, squeeze, 1),
        conv(size, squeeze, expand, 1),
        conv(size, squeeze, expand, 3, pad=1),
    ]


#: SqueezeNet 1.0, Iandola et al., 2016, Table 1.
SQUEEZENET = [
    conv(227, 3, 96, 7, stride=2),
    *_fire(55, 96, 16, 64),
    *_fire(55, 128, 16, 64),
    *_fire(55, 128, 32, 128),
    *_fire(27, 256, 32, 128),
    *_fire(27, 256, 48, 192),
    *_fire(27, 384, 48, 192),
    *_fire(27, 384, 64, 256),
    *_fire(13, 512, 64, 256),
    conv(13, 512, 1000, 1),
]
