"""Import paths and input shapes as people write them on the command line."""

from __future__ import annotations

import pytest
import torch

from pytest_neuralpower.errors import ImportPathError
from pytest_neuralpower.model_source import (
    InputSpec,
    build,
    import_object,
    load_model,
    parse_inputs,
)

SOURCE = """
import torch
from torch import nn

instance = nn.Linear(2, 3)
number = 3

def factory(width=4):
    return nn.Linear(width, width)

def nothing():
    return number

def needs_values():
    return nn.Linear(2, int(torch.ones(1).item()) + 2)
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "source_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["source_models", "source_models.py", "./source_models.py"])
def test_a_factory_is_found_in_a_module_or_a_file_and_built_without_weights(source, place):
    model = load_model(f"{place}:factory", {"width": 7})
    assert (model.in_features, model.weight.is_meta) == (7, True)


def test_an_instance_is_taken_as_it_is(source):
    assert load_model("source_models:instance", {}).out_features == 3


def test_a_factory_that_reads_values_is_built_on_the_cpu(source):
    model = load_model("source_models:needs_values", {})
    assert (model.out_features, model.weight.is_meta) == (3, False)


def test_build_passes_arguments_and_errors_on():
    assert build(torch.nn.Linear, 2, out_features=5).out_features == 5
    with pytest.raises(ZeroDivisionError):
        build(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("source_models", "'source_models' is no import path; write package.module:name"),
        ("source_models:", "is no import path"),
        ("no_such_package.models:f", "cannot import 'no_such_package.models'"),
        ("no_such.py:f", "no such file: no_such.py"),
        ("source_models:missing", "source_models has no 'missing'"),
        ("source_models:numbr", "source_models has no 'numbr', did you mean number?"),
        ("source_models:number", "has type int; it must be a model or a factory of one"),
        ("source_models:nothing", "returned a int; it must return a torch.nn.Module"),
    ],
)
def test_a_wrong_import_path_is_one_clear_line(source, target, message):
    with pytest.raises(ImportPathError) as caught:
        load_model(target, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_name_the_factory_and_the_remedy(source):
    with pytest.raises(ImportPathError, match=r"could not be called: .*'depth'.* --arg name=value"):
        load_model("source_models:factory", {"depth": 3})
    with pytest.raises(ImportPathError, match="is a model, not a factory: remove --arg depth"):
        load_model("source_models:instance", {"depth": 3})


def test_a_nested_name_is_followed():
    assert import_object("torch.nn:Module.forward") is torch.nn.Module.forward


def test_inputs_are_positional_or_named_meta_floats_and_real_integers():
    positional, named = parse_inputs(["1,3,8,8", "ids=2,5:int64", "mask=2,5:bool", "4:bfloat16"])
    assert [tuple(tensor.shape) for tensor in positional] == [(1, 3, 8, 8), (4,)]
    assert all(tensor.is_meta for tensor in positional)
    assert positional[1].dtype == torch.bfloat16
    assert named["ids"].tolist() == [[0] * 5] * 2
    assert named["mask"].all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1,3,224:float31", "unknown dtype 'float31'; allowed: float32"),
        ("1,x", "'1,x' is no shape"),
        ("1,0,3", "'1,0,3' is no shape"),
        ("", "'' is no shape"),
        ("ids=1,x", "--input ids=1,x: '1,x' is no shape"),
        ("ids=1,2:int", "--input ids=1,2:int: unknown dtype 'int'"),
        ("1x=1,2", "--input 1x=1,2: '1x' must be the name of an argument"),
        ("=1,2", "--input =1,2: '' must be the name of an argument"),
    ],
)
def test_a_wrong_input_is_one_clear_line(spec, message):
    with pytest.raises(ImportPathError, match=message):
        parse_inputs([spec])


def test_an_input_that_is_given_twice_is_named():
    with pytest.raises(ImportPathError, match="--input ids=: it is given 2 times; give one"):
        parse_inputs(["ids=1,2", "1,3", "ids=2,2"])


@pytest.mark.parametrize("dtype", ["int64", "float32"])
@pytest.mark.parametrize("values", [None, (0.0, 9.0)])
def test_inputs_of_eighty_gigabytes_are_never_made(
    dtype: str, values: tuple[float, float] | None
) -> None:
    made = InputSpec((100_000, 100_000), dtype, values).tensor()
    assert made.is_meta
    assert made.shape == (100_000, 100_000)
