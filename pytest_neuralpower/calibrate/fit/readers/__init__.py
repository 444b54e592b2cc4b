"""Readers of public tables, one file a source: measured rows in memory, never copied here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.fit.readers.layer_tables import (
    aiconfigurator_attention,
    aiconfigurator_gemm,
    caffe_layers,
    deepbench_conv,
    deepbench_gemm,
    rapl_layers,
)
from pytest_neuralpower.calibrate.fit.readers.neusight import (
    neusight_bmm,
    neusight_conv,
    neusight_linear,
    neusight_vec,
)
from pytest_neuralpower.calibrate.fit.readers.table import DATA_VARIABLE, Options, data_root

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import Row

__all__ = ["DATA_VARIABLE", "READERS", "data_root"]

#: Readers by the name that recipes use.
READERS: Final[Mapping[str, Callable[[Path, Options], list[Row]]]] = {
    "deepbench_conv": deepbench_conv,
    "deepbench_gemm": deepbench_gemm,
    "caffe_layers": caffe_layers,
    "neusight_conv": neusight_conv,
    "neusight_linear": neusight_linear,
    "neusight_bmm": neusight_bmm,
    "neusight_vec": neusight_vec,
    "aiconfigurator_gemm": aiconfigurator_gemm,
    "aiconfigurator_attention": aiconfigurator_attention,
    "rapl_layers": rapl_layers,
}
