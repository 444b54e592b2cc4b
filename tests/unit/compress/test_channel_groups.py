"""Channel groups of real models: what they predict of a narrower model is what it becomes."""

import copy
import random

import pytest
import torch
from torch import nn

from pytest_neuralpower import trace
from pytest_neuralpower.compress.find_groups import NOT_CHECKED, find_channel_groups
from pytest_neuralpower.compress.width_prices import LayerQuota
from pytest_neuralpower.errors import CompressError, UnsupportedGraphError

pytest.importorskip("torch_pruning")

from pytest_neuralpower.compress.find_groups import remove_units

#: One of each way to couple widths: residual adds, depthwise convolutions, squeeze-and-excitation,
#: concatenations, grouped convolutions, dense blocks, a linear layer after a flattened map.
MODELS = {
    "resnet10": 224,
    "mobilenetv2_wd4": 224,
    "seresnet10": 224,
    "squeezenet_v1_1": 224,
    "resnext14_16x4d": 224,
    "peleenet": 224,
    "lenet": 32,
}


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 12, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.more = nn.Sequential(nn.Conv2d(12, 20, 5), nn.PReLU(20), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Linear(20 * 5 * 5, 50), nn.ReLU(), nn.Linear(50, 10))

    def forward(self, x):
        return self.head(self.more(self.maps(x)).flatten(1))


def build(name):
    """The model with its weights, and an input; batch norms have statistics of their own."""
    torch.manual_seed(0)
    if name == "lenet":
        return LeNet().eval(), torch.randn(2, 3, MODELS[name], MODELS[name])
    from pytorchcv.model_provider import get_model

    model = get_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model, torch.randn(1, 3, MODELS[name], MODELS[name])


def random_removals(groups, seed):
    """Some units of every group that may change, at least one left."""
    chance = random.Random(seed)
    return [
        (group, sorted(chance.sample(range(group.units), chance.randrange(group.units))))
        for group in groups.changeable
    ]


def widths_of(groups):
    return {group.name: group.width for group in groups.changeable}


def widths_after(removed):
    return {group.name: group.width - len(units) * group.step for group, units in removed}


def without_reading(model, removed):
    """A copy whose layers do not read the removed channels: what they hold no longer matters."""
    silent = copy.deepcopy(model)
    for group, units in removed:
        for slot in group.slots:
            if slot.axis == "in" and slot.kind in ("conv", "linear"):
                weight = silent.get_submodule(slot.path).weight
                channels = torch.as_tensor(slot.indices[units].ravel())
                with torch.no_grad():
                    # A grouped convolution counts its inputs anew in every group.
                    weight[:, channels % weight.shape[1]] = 0
    return silent


@pytest.fixture(scope="module", params=list(MODELS))
def found(request):
    model, inputs = build(request.param)
    return model, inputs, find_channel_groups(model, (inputs,))


class TestARealModel:
    def test_layers_at_other_widths_are_those_of_the_narrowed_model(self, found):
        model, inputs, groups = found
        for seed in range(3):
            removed = random_removals(groups, seed)
            narrowed = copy.deepcopy(model)
            remove_units(narrowed, removed)
            expected = trace(narrowed, inputs).layers
            assert groups.layers_at(widths_after(removed)) == expected
            assert expected != groups.trace.layers

    def test_parameters_at_other_widths_are_those_of_the_narrowed_model(self, found):
        model, _, groups = found
        removed = random_removals(groups, 7)
        narrowed = copy.deepcopy(model)
        remove_units(narrowed, removed)
        count = sum(parameter.numel() for parameter in narrowed.parameters())
        assert groups.parameters(widths_after(removed)) == count
        assert groups.parameters() == sum(each.numel() for each in model.parameters())

    def test_removing_channels_that_nobody_reads_changes_no_output(self, found):
        model, inputs, groups = found
        removed = random_removals(groups, 11)
        narrowed = copy.deepcopy(model)
        remove_units(narrowed, removed)
        with torch.inference_mode():
            expected = without_reading(model, removed)(inputs)
            assert torch.allclose(narrowed(inputs), expected, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(model(inputs), expected, rtol=1e-3, atol=1e-4)

    def test_every_width_but_the_output_may_change(self, found):
        _, _, groups = found
        assert set(groups.frozen.values()) == {"it is the model's output"}
        assert len(groups.frozen) == 1

    def test_the_model_is_left_as_it_was(self, found):
        model, inputs, groups = found
        assert trace(model, inputs).layers == groups.trace.layers
        assert not any(module.training for module in model.modules())


class Block(nn.Module):
    """Two branches, one grouped; their concatenation is added to a third."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.right = nn.Conv2d(3, 24, 1)
        self.whole = nn.Conv2d(3, 32, 1)
        self.grouped = nn.Conv2d(32, 16, 3, groups=4)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        return self.last(self.grouped(torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)))


class TestTheGroups:
    def test_split_a_width_where_a_concatenation_does(self):
        groups = find_channel_groups(Block().eval(), (torch.empty(1, 3, 8, 8),))
        left = groups["left"]
        # Four groups of eight inputs: the same position of each goes together, so that no group of
        # `left` (inputs 0..7) can change without `right` (8..31).
        assert (left.width, left.step, left.frozen) == (8, 1, "")
        assert {slot.path for slot in left.slots} == {"left", "right", "whole", "grouped"}
        assert left.consumers == ("grouped",)
        assert groups["grouped"].step == 4

    def test_may_grow_too(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval()
        wider = nn.Sequential(nn.Conv2d(3, 13, 1), nn.BatchNorm2d(13), nn.Conv2d(13, 4, 1)).eval()
        inputs = torch.empty(1, 3, 8, 8)
        groups = find_channel_groups(model, (inputs,))
        assert groups.layers_at({"0": 13}) == trace(wider, inputs).layers

    def test_of_a_model_without_weights_are_the_same(self):
        inputs = torch.empty(1, 3, 8, 8)
        with torch.device("meta"):
            without = Block().eval()
        here = find_channel_groups(Block().eval(), (inputs,))
        there = find_channel_groups(without, (inputs.to("meta"),))
        assert widths_of(here) == widths_of(there)
        assert here.trace.layers == there.trace.layers

    @pytest.mark.parametrize("width", [0, 6, -4])
    def test_refuse_a_width_that_cannot_be(self, width):
        groups = find_channel_groups(Block().eval(), (torch.empty(1, 3, 8, 8),))
        with pytest.raises(CompressError, match=r"grouped: it cannot have .* give a multiple of 4"):
            groups.layers_at({"grouped": width})

    def test_refuse_the_outputs_width(self):
        groups = find_channel_groups(Block().eval(), (torch.empty(1, 3, 8, 8),))
        with pytest.raises(
            CompressError, match=r"last: its width may not change: it is the model's"
        ):
            groups.layers_at({"last": 4})

    def test_not_checked_are_frozen(self):
        groups = find_channel_groups(
            Block().eval(), (torch.empty(1, 3, 8, 8),), effort=LayerQuota(0)
        )
        assert set(groups.frozen.values()) == {NOT_CHECKED}


class Wide(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


class TestOfACallThatIsTraced:
    """Its layers are believed while they are the model's own; it is traced again otherwise."""

    inputs = torch.empty(1, 3, 8, 8)

    def found(self, model, traced=None):
        groups = find_channel_groups(model, (self.inputs,), traced=traced)
        sizes = [(group.name, group.frozen, group.gains) for group in groups.groups]
        return groups.trace.layers, sizes

    def test_are_those_of_the_trace(self):
        model = Block().eval()
        traced = trace(model, self.inputs)
        groups = find_channel_groups(model, (self.inputs,), traced=traced)
        assert groups.trace is traced
        assert self.found(model, traced) == self.found(model)

    @pytest.mark.parametrize("change", ["widened", "trained", "autocast"])
    def test_are_not_of_a_trace_that_is_no_longer_true(self, change):
        model = Wide().eval()
        if change == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                traced = trace(model, self.inputs)
        else:
            traced = trace(model, self.inputs)
        if change == "widened":
            model.first, model.norm, model.last = Wide(9).eval().children()
        if change == "trained":
            model.train()
        layers, sizes = self.found(model, traced)
        assert layers == trace(model, self.inputs).layers != traced.layers
        assert (layers, sizes) == self.found(model)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.middle = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.first(x)
        x = x.view(len(x), 2, 4, 8, 8).transpose(1, 2).reshape(len(x), 8, 8, 8)
        return self.last(self.middle(x))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(self.first(x)[:, :4])


class TestWhatCannotBeFollowed:
    def test_a_channel_shuffle_freezes_only_what_runs_through_it(self):
        groups = find_channel_groups(Shuffled().eval(), (torch.empty(1, 3, 8, 8),))
        assert groups.frozen["first"] == "a channel shuffle moves its channels"
        assert list(widths_of(groups)) == ["middle"]

    def test_a_width_written_into_the_code_is_frozen(self):
        groups = find_channel_groups(Halves().eval(), (torch.empty(1, 3, 8, 8),))
        assert groups.frozen["first[0:4]"].startswith("narrower, the model does not run")

    def test_an_attention_keeps_its_heads(self):
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
        groups = find_channel_groups(layer, (torch.empty(2, 5, 16),))
        assert widths_of(groups) == {"linear1": 32}

    def test_torch_prunings_failure_is_one_line_that_names_the_operation(self):
        from pytorchcv.model_provider import get_model

        with torch.device("meta"):
            model = get_model("shufflenetv2_wd2").eval()
        with pytest.raises(UnsupportedGraphError) as failure:
            find_channel_groups(model, (torch.empty(1, 3, 224, 224, device="meta"),))
        assert "viewbackward" in str(failure.value)
        assert "\n" not in str(failure.value)

    def test_a_model_of_foreign_layers_is_refused_and_their_type_is_named(self):
        """As GPT-2's, of linear layers that transformers defines itself."""
        model = nn.Sequential(Transposed(6, 8), nn.ReLU(), Transposed(8, 3))
        says = r"does not know Transposed \(0\); use torch.nn's own layers in its place, or change"
        with pytest.raises(UnsupportedGraphError, match=says):
            find_channel_groups(model, (torch.empty(2, 6),))

    def test_a_layer_of_torchs_own_is_not_to_be_replaced_by_one(self):
        with pytest.raises(UnsupportedGraphError, match=r"know GRU \(0\); change widths by hand$"):
            find_channel_groups(nn.Sequential(nn.GRU(6, 8)), (torch.empty(2, 5, 6),))
        with pytest.raises(UnsupportedGraphError, match=r"know GRU; change widths by hand$"):
            find_channel_groups(nn.GRU(6, 8), (torch.empty(2, 5, 6),))


class Transposed(nn.Module):
    """A linear layer of its own, with the weight (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight
