"""Shape rules: one table from torch's functions to what they cost, filled by the modules here."""

from __future__ import annotations

from pytest_neuralpower.tracing.rules import (
    attention,
    conv,
    elementwise,
    indexing,
    matmul,
    memory,
    norm,
    pooling,
    reduction,
    rnn,
)
from pytest_neuralpower.tracing.rules import matmul as embedding
from pytest_neuralpower.tracing.rules import matmul as linear
from pytest_neuralpower.tracing.rules import reduction as losses
from pytest_neuralpower.tracing.rules import table as attributes
from pytest_neuralpower.tracing.rules import table as factories
from pytest_neuralpower.tracing.rules import table as views
from pytest_neuralpower.tracing.rules.table import TABLE, Entry

__all__ = [
    "TABLE",
    "Entry",
    "attention",
    "attributes",
    "conv",
    "elementwise",
    "embedding",
    "factories",
    "indexing",
    "linear",
    "losses",
    "matmul",
    "memory",
    "norm",
    "pooling",
    "reduction",
    "rnn",
    "views",
]
