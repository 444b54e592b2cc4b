"""How many samples a call has, wherever its tensors are."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import batch_size, input_tensors


@dataclass
class Sample:
    image: torch.Tensor
    label: Any = None


@dataclass(slots=True)
class Slotted:
    image: torch.Tensor


class Store:
    """Keeps its attributes in a dictionary, and knows its owner, as torch_geometric's does."""

    def __init__(self, owner: Any, **values: torch.Tensor) -> None:
        self._mapping = values
        self._owner = owner


class Graph:
    """Three nodes for each of four graphs, and their edges; called, it lists them, as a ``Data``
    of torch_geometric does."""

    def __init__(self) -> None:
        self._store = Store(self, x=torch.randn(12, 16), edge_index=torch.zeros(2, 30))

    def __call__(self) -> Any:
        return self._store


class Graphs(Graph):
    num_graphs = 4


class Sized(Graph):
    batch_size = torch.Size([6])


class Broken(Graph):
    @property
    def num_graphs(self) -> int:
        raise KeyError("ptr")


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8)


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("value", "samples"),
    [
        (images(), 16),
        (Sample(images()), 16),
        (Sample(images(), torch.zeros(16, dtype=torch.int64)), 16),
        (Sample(images(), torch.tensor(3)), 16),
        (Sample(Sample(images())), 16),
        (Slotted(images()), 16),
        (Pair(images(), images(4)), 16),
        (UserDict(image=images()), 16),
        ([None, {"image": Sample(images())}], 16),
        (pack_sequence([torch.randn(5, 8), torch.randn(3, 8)]), 2),
        (Graphs(), 4),
        (Sized(), 6),
        (Sample(images(), images(4)), 0),
        (Graph(), 0),
        (Broken(), 0),
        (torch.tensor(3.0), 1),
        (Sample(None), 1),
        (None, 1),
    ],
)
def test_samples_are_found(value: Any, samples: int) -> None:
    assert batch_size((value,), {}) == samples
    assert batch_size((), {"batch": value}) == samples


def test_first_argument_with_a_tensor_tells() -> None:
    assert batch_size((3, images(5), Graph()), {}) == 5


def test_tensors_of_an_object_that_knows_itself_are_found_once() -> None:
    assert [tuple(tensor.shape) for tensor in input_tensors(Graph())] == [(12, 16), (2, 30)]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, sample: Sample) -> torch.Tensor:
        return self.conv(sample.image)


def test_trace_has_the_samples_of_an_object() -> None:
    result = trace(Classifier(), Sample(images()))
    assert result.batch == 16
    assert result.macs == 16 * 4 * 36 * 27
    assert not result.notes


def test_disagreeing_tensors_ask_for_samples() -> None:
    result = trace(Classifier(), Sample(images(), torch.zeros(40, 4)))
    assert result.batch == 0
    (note,) = result.notes
    assert "(first dimensions 16, 40)" in note
    assert "samples=" in note


def test_object_on_meta_is_no_place_to_run_for_real() -> None:
    """The search for values finds tensors in objects, too."""
    model = Classifier()
    with torch.device("meta"):
        sample = Sample(torch.randn(2, 3, 8, 8))
    assert trace(model, sample).route == "function"
