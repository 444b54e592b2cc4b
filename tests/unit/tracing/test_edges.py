"""Which layers' outputs a layer reads, on every route."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_neuralpower.tracing import trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace


class Calls(nn.Module):
    """A forward given as a function, with modules of its own."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def edges(result: Trace) -> list[tuple[str, tuple[int, ...]]]:
    return [(layer.op, reads) for layer, reads in zip(result, result.reads, strict=True)]


def edges_of(function: Callable[..., Any], *args: Any, **modules: nn.Module) -> Any:
    return edges(trace(Calls(function, **modules).eval(), *args))


IMAGE = torch.zeros(1, 4, 8, 8)
ROWS = torch.zeros(2, 6)


# -- Branches, views and several outputs.


def test_a_residual_block_reads_both_its_branches() -> None:
    block = Calls(
        lambda self, x: self.act(self.norm(self.conv(x)) + x),
        conv=nn.Conv2d(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4), act=nn.ReLU(inplace=True),
    )  # fmt: skip
    assert edges(trace(nn.Sequential(block, block).eval(), IMAGE)) == [
        ("conv2d", ()), ("batch_norm", (0,)), ("add", (1,)), ("relu", (2,)),
        ("conv2d", (3,)), ("batch_norm", (4,)), ("add", (5, 3)), ("relu", (6,)),
    ]  # fmt: skip


def test_a_concatenation_reads_its_branches_in_their_order() -> None:
    def inception(self: Any, x: Tensor) -> Tensor:
        wide, narrow = self.wide(x), self.narrow(x)
        return torch.cat([narrow, functional.max_pool2d(x, 3, 1, 1), wide], 1)

    wide, narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    assert edges_of(inception, IMAGE, wide=wide, narrow=narrow) == [
        ("conv2d", ()), ("conv2d", ()), ("max_pool2d", ()), ("cat", (1, 2, 0)),
    ]  # fmt: skip


def test_views_are_seen_through() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.relu()
        rows = y.flatten(1).view(2, -1).t().unsqueeze(0).detach()[..., 1:]
        left, right = rows.chunk(2, 1)
        copied = right.mT.clone().expand(3, -1, -1)
        return copied + left.squeeze(-1).split(1)[0].sum() + torch.broadcast_tensors(x, y)[1].sum()

    assert edges_of(forward, torch.zeros(2, 4)) == [
        ("relu", ()), ("clone", (0,)), ("sum", (0,)), ("add", (1, 2)), ("sum", (0,)),
        ("add", (3, 4)),
    ]  # fmt: skip


def test_every_output_of_a_layer_leads_to_it() -> None:
    def forward(self: Any, x: Tensor) -> list[Tensor]:
        sequence, (hidden, cell) = self.lstm(x.relu())
        values, places = x.exp().topk(2)
        pooled, where = functional.max_pool1d(x.exp(), 2, return_indices=True)
        return [each.clone() for each in (sequence, hidden, cell, values, places, pooled, where)]

    found = edges_of(forward, torch.zeros(2, 3, 6), lstm=nn.LSTM(6, 4, batch_first=True))
    ops = [op for op, _ in found]
    lstm, topk, pool = ops.index("lstm"), ops.index("topk"), ops.index("max_pool1d")
    assert found[lstm][1] == (0, 1, 2)  # the input, and the zeros that nn.LSTM starts from
    assert [reads for op, reads in found if op == "clone"] == [
        *[(lstm,)] * 3, *[(topk,)] * 2, *[(pool,)] * 2,
    ]  # fmt: skip


def test_attention_reads_its_projections_and_its_mask() -> None:
    def forward(self: Any, x: Tensor, mask: Tensor) -> Any:
        query, key = x.relu(), x.exp()
        attended, weights = self.attention(query, key, key, attn_mask=mask * 2.0)
        return attended.neg(), weights.abs()

    found = edges_of(
        forward, torch.zeros(3, 2, 8), torch.zeros(3, 3), attention=nn.MultiheadAttention(8, 2)
    )
    assert found == [
        ("relu", ()), ("exp", ()), ("mul", ()), ("linear", (0,)), ("linear", (1,)),
        ("scaled_dot_product_attention", (3, 4, 2)), ("linear", (5,)), ("neg", (6,)), ("abs", (5,)),
    ]  # fmt: skip


def test_a_module_called_twice_is_two_layers_with_their_own_operands() -> None:
    linear = nn.Linear(6, 6)
    found = edges_of(lambda self, x: self.one(self.one(x).relu()) + 1, ROWS, one=linear)
    assert found == [("linear", ()), ("relu", (0,)), ("linear", (1,)), ("add", (2,))]


def test_a_computed_weight_is_read() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    assert edges(trace(nn.Sequential(nn.ReLU(), model).eval(), ROWS))[-1] == ("linear", (0, 1))


# -- Writes in place.


def test_who_writes_in_place_is_read_through_every_view() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        x = x.relu()
        part, rest = x[:, :3], x.detach()[:, 3:]
        part += y.exp()
        rest.mul_(2)
        return functional.relu(part, inplace=True) * rest.abs() * x.neg()[:, 1:4]

    assert edges_of(forward, ROWS, torch.zeros(2, 3)) == [
        ("relu", ()), ("exp", ()), ("add", (0, 1)), ("mul", (2,)), ("relu", (3,)), ("abs", (4,)),
        ("mul", (4, 5)), ("neg", (4,)), ("mul", (6, 7)),
    ]  # fmt: skip


def test_a_part_written_leaves_the_rest_with_its_makers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        whole = torch.zeros(2, 12)
        whole[:, :6] = x.relu()
        whole[:, 6:].copy_(x.exp())
        return whole.neg()

    assert edges_of(forward, ROWS) == [
        ("zeros", ()), ("relu", ()), ("setitem", (1, 0)), ("exp", ()), ("copy", (3, 2)),
        ("neg", (4,)),
    ]  # fmt: skip


def test_what_is_wholly_overwritten_reads_nothing_of_before() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.relu()
        y.copy_(x.exp())
        return y.neg()

    assert edges_of(forward, ROWS)[2:] == [("copy", (1,)), ("neg", (2,))]


def test_a_buffer_holds_what_was_written_into_it() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(2, 12))

        def forward(self, x: Tensor) -> Tensor:
            cache = self.get_buffer("cache")
            cache[:, :6] = x.relu()
            cache[:, 6:].index_copy_(1, torch.arange(6), x.exp())
            return cache[:, 2:8].neg() + x

    ops = edges(trace(Cached(), ROWS))
    assert [edge for edge in ops if edge[0] != "arange"][1:] == [
        ("setitem", (0,)), ("exp", ()), ("index_copy", (2, 3, 1)), ("neg", (4,)), ("add", (5,)),
    ]  # fmt: skip


# -- The other routes.


def by_values(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x).relu_()
    if y.sum() > -1:  # only the forward route can tell
        y = y.clone()
    y[:, :2] += torch.fft.fft(x).abs()[:, :2]
    return functional.adaptive_avg_pool2d(torch.cat([y, x], 1), 1).flatten(1)


def test_the_forward_route_follows_memory_without_keeping_it() -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def forward(self: Any, x: Tensor) -> Tensor:
        nonlocal most
        for _ in range(8):
            x = by_values(self, x)[..., None, None].expand(-1, -1, 8, 8)[:, :4]
            alive.append(weakref.ref(x.untyped_storage()))
            most = max(most, sum(storage() is not None for storage in alive))
        return x

    model = Calls(forward, conv=nn.Conv2d(4, 4, 1)).requires_grad_(False).eval()
    gc.disable()
    try:
        result = trace(model, IMAGE)
    finally:
        gc.enable()
    assert result.route == "forward"
    assert most <= 2
    ops = edges(result)
    assert ops[:12] == [
        ("conv2d", ()), ("relu", (0,)), ("sum", (1,)), ("gt", (2,)), ("clone", (1,)),
        ("fft_r2c", ()), ("abs", (5,)), ("add", (4, 6)), ("setitem", (7,)), ("cat", (8,)),
        ("adaptive_avg_pool2d", (9,)), ("conv2d", (10,)),
    ]  # fmt: skip


def test_values_that_leave_torch_are_noted() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.relu().numpy() + 1).exp()

    result = trace(Calls(forward), ROWS)
    assert edges(result) == [("relu", ()), ("exp", ())]
    assert any("left torch (numpy)" in note for note in result.notes)


def test_a_batched_function_is_followed_below_its_lanes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.vmap(lambda row: row.exp() * y.sum())(y).relu()

    result = trace(Calls(forward, linear=nn.Linear(6, 6)), ROWS)
    assert result.route == "aten"
    assert edges(result) == [
        ("linear", ()), ("exp", (0,)), ("sum", (0,)), ("mul", (1, 2)), ("relu", (3,)),
    ]  # fmt: skip


def test_a_gradient_reads_what_the_forward_saved() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.requires_grad_() * 2
        (gradient,) = torch.autograd.grad((y.sin() * y).sum(), x)
        return gradient

    result = trace(Calls(forward), ROWS)
    assert result.route == "aten"
    cosine = [reads for op, reads in edges(result) if op == "cos"]
    assert cosine == [(0,)]  # of y, the first layer's output


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_script_hands_its_edges_on() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            x.mul_(2.0)
            return y + x

    script = torch.jit.script(Twice())
    found = edges_of(lambda self, x: self.script(y := x.relu()) + y, ROWS, script=script)
    assert found == [
        ("relu", ()), ("exp", (0,)), ("mul", (0,)), ("add", (1, 2)), ("add", (3, 2)),
    ]  # fmt: skip


def squared(x: Tensor) -> Tensor:
    return x.pow(2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_script_that_runs_for_real_is_listed_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.relu()
        if y.sum() > -1:  # only the forward route can tell
            y = self.squared(self.script(y))
        return y.neg()

    script = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    model = Calls(forward, script=script)
    model.squared = torch.jit.script(squared)
    result = trace(model.eval(), ROWS)
    assert result.route == "forward"
    assert edges(result) == [
        ("relu", ()), ("sum", (0,)), ("gt", (1,)), ("linear", (0,)), ("relu", (3,)), ("pow", (4,)),
        ("neg", (5,)),
    ]  # fmt: skip
    assert len(result[3].weights) == 2


def test_an_exported_graph_has_the_edges_of_its_module() -> None:
    model = Calls(
        lambda self, x: self.last(self.first(x).flatten(1)[:, 2:]),
        first=nn.Conv2d(4, 4, 1), last=nn.Linear(254, 2),
    ).eval()  # fmt: skip
    exported = torch.export.export(model, (IMAGE,)).module()
    assert edges(trace(exported, IMAGE))[-1] == ("linear", (0,))


def test_an_operation_without_a_rule_hands_its_edges_on() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.relu()
        return torch.linalg.matrix_exp(y @ y.T) + torch.renorm(y, 2, 0, 1.0)[:, :2]

    result = trace(Calls(forward), ROWS)
    ops = edges(result)
    assert result.fallbacks
    assert ops[:2] == [("relu", ()), ("matmul", (0,))]
    inner = len(ops) - 1
    assert ops[2][1] == (1,)
    assert ops[inner][0] == "add"
    assert max(ops[inner][1]) == inner - 1  # of renorm, the layer listed last
    assert len(ops[inner][1]) == 2


# -- Real models, beside what their memory shows.


class Memory(TorchDispatchMode):
    """Of a real run: every ATen operation that writes, with the operations whose results it reads.

    It knows nothing of the tracer: an operation reads whoever last wrote to its operands' memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, set[int]]] = []
        self.writers: dict[int, int] = {}
        self.kept: list[Tensor] = []  # so that no address recurs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs or {}))
                 if isinstance(leaf, Tensor)]  # fmt: skip
        made = [leaf for leaf in torch.utils._pytree.tree_leaves(result)
                if isinstance(leaf, Tensor)]  # fmt: skip
        self.kept += made
        addresses = {each.untyped_storage().data_ptr() for each in given}
        new = [each for each in made if each.untyped_storage().data_ptr() not in addresses]
        if new or func._schema.is_mutable:
            reads = {self.writers[place] for place in addresses if place in self.writers}
            self.operations.append((func._schema.name.removeprefix("aten::"), reads))
            for each in made:
                self.writers[each.untyped_storage().data_ptr()] = len(self.operations) - 1
        return result


#: What both views of a model list alike: by ATen's name and by ours.
ANCHORS = {
    "convolution": "conv", "addmm": "product", "mm": "product", "bmm": "product", "cat": "cat",
    "native_layer_norm": "norm", "native_batch_norm": "norm", "embedding": "embedding",
    "_native_batch_norm_legit_no_training": "norm", "gelu": "gelu", "tanh": "tanh",
    "_scaled_dot_product_flash_attention_for_cpu": "attention", "max_pool2d_with_indices": "pool",
    "conv": "conv", "linear": "product", "matmul": "product", "norm": "norm",
    "attention": "attention", "max_pool2d": "pool",
}  # fmt: skip


def between(operations: list[tuple[str, Any]]) -> list[tuple[str, set[int]]]:
    """Anchors only: which of them each reads, directly or through operations between them."""
    seen: list[set[int]] = []
    anchors: list[tuple[str, set[int]]] = []
    for name, reads in operations:
        sources = set().union(*(seen[read] for read in reads))
        if name in ANCHORS:
            anchors.append((ANCHORS[name], sources))
            sources = {len(anchors) - 1}
        seen.append(sources)
    return anchors


def pytorchcv(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    provider = pytest.importorskip("pytorchcv.model_provider")
    return provider.get_model(name), {"x": torch.randn(1, 3, 224, 224)}


def transformer(model: str, config: str, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "vocab_size": 64, **options}  # fmt: skip
    built = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return built, {"input_ids": torch.arange(8)[None]}


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    **{name: lambda name=name: pytorchcv(name) for name in (
        "resnet18", "preresnet18", "densenet121", "mobilenetv3_small_w1", "shufflenetv2_wd2",
        "seresnet18", "hrnet_w18_small_v1", "dla34", "squeezenet_v1_1", "efficientnet_b0",
    )},
    "bert": lambda: transformer("BertModel", "BertConfig"),
    "llama": lambda: transformer("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "gpt-neox": lambda: transformer("GPTNeoXModel", "GPTNeoXConfig"),
    "gemma": lambda: transformer("Gemma2Model", "Gemma2Config", head_dim=8, num_key_value_heads=2),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_edges_are_those_of_a_real_run(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval()
    with torch.no_grad(), Memory() as memory:
        model(**inputs)
    result = trace(model, **inputs)
    kinds = ("conv", "linear", "matmul", "attention", "norm", "embedding")
    ours = [
        (layer.kind if layer.kind in kinds else layer.op, reads)
        for layer, reads in zip(result, result.reads, strict=True)
    ]
    assert between(ours) == between(memory.operations)


def test_a_step_of_a_language_model_reads_the_cache_that_it_extends() -> None:
    transformers = pytest.importorskip("transformers")
    model, inputs = transformer("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2)
    model.eval()
    cache = transformers.DynamicCache(config=model.config)
    model(**inputs, cache=cache)
    result = trace(model, input_ids=torch.tensor([[3]]), cache=cache, use_cache=True)
    ops = edges(result)
    attentions = [reads for op, reads in ops if op == "scaled_dot_product_attention"]
    assert len(attentions) == 2
    for query, key, value, *_ in attentions:
        assert ops[query][0] == "add"  # rotated
        assert (ops[key][0], ops[value][0]) == ("cat", "cat")  # of the cache and the new token
        assert ops[ops[key][1][0]][0] == "add"
        assert ops[ops[value][1][0]][0] == "linear"
