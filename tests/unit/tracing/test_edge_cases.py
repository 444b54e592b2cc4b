"""Models that trip tracers: each is traced right, or refused in one clear line."""

from __future__ import annotations

import warnings
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_neuralpower.errors import TraceError
from pytest_neuralpower.tracing import trace


class Wrap(nn.Module):
    """A model made of one function and any submodules."""

    def __init__(self, forward: Any, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def ops(result: Any) -> list[str]:
    return [layer.op for layer in result]


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 8, 8)))


# --- how values reach the model -------------------------------------------------------------


def test_model_on_meta_takes_inputs_on_the_cpu() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    result = trace(model, image())
    assert result.route == "function"
    assert result.macs == 2 * 36 * 4 * 27 + 2 * 144 * 5


def test_inputs_in_dictionaries_tuples_and_keywords_are_found() -> None:
    pair = namedtuple("pair", "left right")

    def forward(self: Any, batch: dict[str, Any], *, scale: torch.Tensor) -> dict[str, Any]:
        left, right = batch["pair"]
        return {"out": [self.fc(left + right) * scale]}

    model = Wrap(forward, fc=nn.Linear(4, 2))
    values = pair(torch.randn(3, 4), torch.randn(3, 4))
    result = trace(model, {"pair": values}, scale=torch.randn(3, 2))
    assert ops(result) == ["add", "linear", "mul"]
    assert result.batch == 3


def test_model_without_tensor_input_counts_as_a_batch_of_one() -> None:
    model = Wrap(lambda self: self.fc(torch.zeros(7, 4)), fc=nn.Linear(4, 2))
    result = trace(model)
    assert result.batch == 1
    assert result.macs == 7 * 4 * 2


def test_integer_inputs_keep_their_values() -> None:
    def forward(self: Any, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        for _ in range(int(count.item())):
            x = self.fc(x)
        return x

    result = trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.randn(2, 4), torch.tensor(3))
    assert result.route == "function"
    assert ops(result) == ["linear"] * 3


def test_boolean_mask_input_selects_a_known_number_of_rows() -> None:
    def forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.fc(x[mask])

    mask = torch.tensor([True, False, True])
    result = trace(Wrap(forward, fc=nn.Linear(4, 5)), torch.randn(3, 4), mask)
    assert result.route == "function"
    assert result[-1].inputs[0].shape == (2, 4)


def test_value_of_one_number_parameter_can_be_read() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale.exp().item()

    assert trace(Scaled(), torch.randn(2)).route == "function"


def test_branches_on_shapes_follow_the_shapes() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.wide(x) if x.shape[-1] > 4 else self.narrow(x)

    model = Wrap(forward, wide=nn.Linear(8, 2), narrow=nn.Linear(4, 3))
    assert trace(model, torch.randn(1, 8))[0].path == "wide"
    assert trace(model, torch.randn(1, 4))[0].path == "narrow"


# --- code that needs values: one real forward -----------------------------------------------


def branch(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(x) if x.sum() > 0 else x


def item(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(x) * x.max().item()


def to_numpy(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(torch.from_numpy(np.abs(x.detach().numpy())))


def mask_of_activations(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(x)[x > 0]


def nonzero(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(x[torch.nonzero(x[:, 0] > -100)[:, 0]])


def unique(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.fc(x) + len(torch.unique(x))


@pytest.mark.parametrize("forward", [branch, item, to_numpy, mask_of_activations, nonzero, unique])
def test_code_that_reads_activations_is_run_for_real(forward: Any) -> None:
    model = Wrap(forward, fc=nn.Linear(4, 4))
    result = trace(model, torch.ones(2, 4))
    assert result.route == "forward"
    assert any("real forward because" in note for note in result.notes)
    linear = next(layer for layer in result if layer.kind == "linear")
    assert (linear.path, linear.macs) == ("fc", 32)


@pytest.mark.parametrize("forward", [branch, item, to_numpy, mask_of_activations, nonzero])
def test_code_that_reads_activations_is_refused_on_meta(forward: Any) -> None:
    with torch.device("meta"):
        model = nn.Sequential(Wrap(forward, fc=nn.Linear(4, 4)))
    with pytest.raises(TraceError, match=r"'0' \(Wrap\).*build the model .* on the CPU") as error:
        trace(model, torch.ones(2, 4))
    assert "\n" not in str(error.value)


def test_model_may_catch_exceptions_without_hiding_the_detour() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        try:
            positive = bool(x.sum() > 0)
        except Exception:
            positive = False
        return self.fc(x) if positive else x

    assert ops(trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.ones(2, 4)))[-1] == "linear"


# --- recurrent layers -------------------------------------------------------------------------


def test_packed_lstm_counts_the_true_lengths() -> None:
    def forward(self: Any, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = self.lstm(packed)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]

    model = Wrap(forward, lstm=nn.LSTM(5, 7, batch_first=True))
    result = trace(model, torch.randn(3, 6, 5), torch.tensor([2, 6, 4]))
    assert result.route == "function"
    rnn = next(layer for layer in result if layer.kind == "rnn")
    assert rnn.param("steps") == 12
    assert rnn.macs == 12 * 4 * 7 * (5 + 7)
    padded = next(layer for layer in result if layer.op == "pad_packed_sequence")
    assert padded.outputs[0].shape == (3, 6, 7)


@pytest.mark.parametrize("proj", [0, 3])
@pytest.mark.parametrize("both", [False, True])
def test_lstm_macs_are_those_of_its_products(proj: int, both: bool) -> None:
    lstm = nn.LSTM(5, 7, num_layers=2, bidirectional=both, proj_size=proj)
    result = trace(lstm, torch.randn(4, 2, 5))
    rnn = next(layer for layer in result if layer.kind == "rnn")
    weights = [p.numel() for name, p in lstm.named_parameters() if name.startswith("weight")]
    assert rnn.macs == 4 * 2 * sum(weights)
    assert rnn.param("hidden_size") == 7
    assert rnn.param("num_layers") == 2
    assert rnn.param("bidirectional") is both


@pytest.mark.parametrize(
    ("cell", "mode"), [(nn.LSTMCell, "LSTM"), (nn.GRUCell, "GRU"), (nn.RNNCell, "RNN_TANH")]
)
def test_cells_in_a_loop_are_one_layer_a_step(cell: Any, mode: str) -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        state = None
        for step in range(x.shape[0]):
            state = self.cell(x[step], state)
        return state

    model = Wrap(forward, cell=cell(5, 7))
    result = trace(model, torch.randn(3, 2, 5))
    cells = [layer for layer in result if layer.kind == "rnn"]
    assert [layer.param("mode") for layer in cells] == [mode] * 3
    weights = model.cell.weight_ih.numel() + model.cell.weight_hh.numel()
    assert cells[0].macs == 2 * weights


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_gru_and_rnn_count_every_weight_once_a_step(kind: Any) -> None:
    rnn = kind(5, 7, batch_first=True)
    layer = next(layer for layer in trace(rnn, torch.randn(2, 4, 5)) if layer.kind == "rnn")
    assert layer.macs == 2 * 4 * (rnn.weight_ih_l0.numel() + rnn.weight_hh_l0.numel())


# --- attention ----------------------------------------------------------------------------------


def test_multi_head_attention_is_its_projections_and_one_attention() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    model = Wrap(lambda self, x, m: self.mha(x, x, x, key_padding_mask=m)[0], mha=attention)
    result = trace(model, x, mask)
    products = [layer for layer in result if layer.macs]  # the mask costs two small layers
    assert ops(products) == ["linear", "scaled_dot_product_attention", "linear"]
    assert products[1].inputs[0].shape == (3, 2, 5, 4)
    assert products[1].param("masked") is True
    assert result.macs == 15 * 8 * 24 + 2 * 3 * 2 * 5 * 5 * 4 + 15 * 8 * 8


def test_cross_attention_projects_query_and_source_apart() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    result = trace(attention, torch.randn(5, 3, 8), torch.randn(7, 3, 6), torch.randn(7, 3, 4))
    assert [layer.macs for layer in result if layer.kind == "linear"] == [
        15 * 64, 21 * 48, 21 * 32, 15 * 64,
    ]  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_full_transformer_lists_what_training_and_evaluation_share(training: bool) -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).train(training)
    result = trace(model, torch.randn(2, 5, 8), torch.randn(2, 4, 8))
    assert result.route == "function"
    assert sum(layer.kind == "attention" for layer in result) == 3
    encoder = 10 * (8 * 24 + 64 + 2 * 128) + 2 * 2 * 2 * 25 * 4
    decoder = 8 * (8 * 24 + 64 + 2 * 128) + 2 * 2 * 2 * 16 * 4
    cross = 8 * 64 + 10 * 128 + 2 * 2 * 2 * 20 * 4 + 8 * 64
    assert result.macs == encoder + decoder + cross


def test_encoder_with_padding_mask_lists_its_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    mask = torch.zeros(2, 5, dtype=torch.bool)
    result = trace(model, torch.randn(2, 5, 8), src_key_padding_mask=mask)
    assert sum(layer.kind == "attention" for layer in result) == 2


def test_grouped_queries_keep_their_own_key_heads() -> None:
    def forward(self: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)

    (layer,) = trace(Wrap(forward), torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8))
    assert layer.inputs[1].shape == (1, 2, 5, 8)
    assert layer.macs == 4 * 5 * 5 * 16
    assert layer.param("causal") is True


# --- layouts and dtypes -------------------------------------------------------------------------


def test_channels_last_survives_to_the_flattening_copy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    plain = trace(model, image())
    nhwc = trace(model, image().contiguous(memory_format=torch.channels_last))
    assert ops(plain) == ["conv2d", "batch_norm", "relu"]
    assert ops(nhwc) == ["conv2d", "batch_norm", "relu", "reshape"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_model_is_the_layers(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(dtype)
    result = trace(model, image().to(dtype))
    assert {layer.dtype for layer in result} == {str(dtype).removeprefix("torch.")}


def test_autocast_inside_forward_lowers_products_only() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(self.norm(x))

    model = Wrap(forward, norm=nn.LayerNorm(4), fc=nn.Linear(4, 4))
    result = trace(model, torch.randn(2, 4))
    assert [(layer.op, layer.dtype) for layer in result] == [
        ("layer_norm", "float32"),
        ("to", "bfloat16"),
        ("linear", "bfloat16"),
    ]
    assert result.reads == ((), (0,), (1,))


class Kernels(TorchDispatchMode):
    """What torch runs: names of its kernels, and the dtype of the first result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {weight.data_ptr() for weight in model.parameters()}
        self.ran: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and args[0].data_ptr() not in self.weights:
            dtype = str(result.dtype).removeprefix("torch.")
            self.ran.append((func.overloadpacket.__name__, dtype))
        return result


def test_autocast_casts_what_torch_casts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
            self.conv, self.out = nn.Conv1d(8, 8, 3), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm(x)
            q, k, v = self.qkv(normed).chunk(3, -1)
            products = (q @ k.mT).softmax(-1).float() @ v.float()
            return x + self.out(products) + self.conv(normed.mT.contiguous()).mean()

    model, x = Block().eval(), torch.randn(2, 5, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with Kernels(model) as kernels:
            model(x)
        result = trace(model, x)
    casts = [dtype for name, dtype in kernels.ran if name == "_to_copy"]
    assert sorted(layer.dtype for layer in result if layer.op == "to") == sorted(casts)


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(F.linear, id="rows as they lie"),
        pytest.param(lambda x, w: F.linear(x.transpose(1, 2), w), id="rows apart"),
        pytest.param(lambda x, w: F.linear(x.transpose(2, 3), w[:, :5]), id="columns apart"),
        pytest.param(lambda x, w: F.linear(x[..., 1:], w[:, 1:]), id="a slice of columns"),
        pytest.param(lambda x, _: x @ x.mT, id="a transposed operand"),
        pytest.param(lambda x, _: x.transpose(1, 2) @ x.permute(0, 2, 3, 1), id="heads apart"),
        pytest.param(lambda x, _: torch.bmm(x[0].mT, x[0]), id="bmm"),
        pytest.param(lambda x, _: x[:, :, 0] @ x[:, :, 1].mT, id="slices of heads"),
    ],
)
def test_products_copy_what_torch_copies(product: Any) -> None:
    model = Wrap(lambda self, x: product(x, self.fc.weight), fc=nn.Linear(6, 4))
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad(), Kernels(model) as kernels:
        model(x)
    copies = [name for name, _ in kernels.ran if name == "clone"]
    assert len([layer for layer in trace(model, x) if layer.op == "contiguous"]) == len(copies)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 8), (3, 5, 8)])
def test_attention_but_of_four_dimensions_is_not_fused(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    def forward(self: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, k)

    q, k = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    model = Wrap(forward)
    with Kernels(model) as kernels:
        model(q, k)
    result = trace(model, q, k)
    names = {"bmm": "matmul", "_safe_softmax": "softmax", "mul": "mul"}
    assert Counter((layer.op, layer.dtype) for layer in result if layer.op != "to") == Counter(
        (names[name], kind) for name, kind in kernels.ran if name in names
    )


def test_autocast_around_the_call_counts_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = trace(nn.Linear(4, 4), torch.randn(2, 4))
    assert result[0].dtype == "bfloat16"


def test_interpolation_answers_by_size_and_by_factor() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return (
            F.interpolate(x, scale_factor=2, mode="nearest"),
            F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False),
        )

    result = trace(Wrap(forward), image())
    assert [layer.outputs[0].shape for layer in result] == [(2, 3, 16, 16), (2, 3, 5, 7)]
    assert {layer.kind for layer in result} == {"memory"}


# --- compiled, scripted, quantised -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on compiling
def test_compiled_module_is_traced_as_it_was_written() -> None:
    compiled = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    result = trace(nn.Sequential(compiled), torch.randn(2, 4))
    assert [(layer.op, layer.path) for layer in result] == [("linear", "0.0"), ("relu", "0.1")]
    root = trace(compiled, torch.randn(2, 4))
    assert [layer.path for layer in root] == ["0", "1"]
    assert root.model == "Sequential"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on compiling
def test_module_compiled_in_place_keeps_its_path() -> None:
    inner = nn.Sequential(nn.Linear(4, 4))
    inner.compile()
    result = trace(nn.Sequential(inner), torch.randn(2, 4))
    assert [layer.path for layer in result] == ["0.0"]
    assert inner._compiled_call_impl is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on compiling
def test_compiled_function_is_run_as_it_was_written() -> None:
    activate = torch.compile(lambda x: F.relu(x) + 1)
    model = Wrap(lambda self, x: activate(self.fc(x)), fc=nn.Linear(4, 4))
    assert ops(trace(model, torch.randn(2, 4))) == ["linear", "relu", "add"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_module_is_listed_under_its_path(how: str) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    scripted = torch.jit.script(inner) if how == "script" else torch.jit.trace(inner, image())
    before = {name: value.clone() for name, value in scripted.state_dict().items()}
    result = trace(nn.Sequential(scripted, nn.Flatten(), nn.Linear(256, 2)), image())
    assert result.route == "function"
    own = [layer.kind for layer in result if layer.path == "0" and layer.kind != "elementwise"]
    assert own == ["conv", "norm", "activation"]
    assert result.macs == 2 * 64 * 4 * 27 + 2 * 512
    assert result.notes == ()
    after = scripted.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_module_as_the_model() -> None:
    scripted = torch.jit.script(nn.Linear(4, 3))
    result = trace(scripted, torch.randn(2, 4))
    assert [(layer.kind, layer.macs) for layer in result] == [("linear", 24)]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_function_is_listed() -> None:
    def square(x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, x).relu()

    scripted = torch.jit.script(square)
    result = trace(Wrap(lambda _self, x: scripted(x)), torch.randn(4, 4))
    assert [layer.op for layer in result] == ["mm", "relu"]
    assert result.macs == 64


@pytest.mark.filterwarnings("ignore")
def test_dynamically_quantised_linear_is_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    result = trace(quantised, torch.randn(2, 4))
    assert result[0].kind == "linear"
    assert result[0].dtype == "int8"  # what goes in and out is float32
    assert result[0].weights[0].dtype == "qint8"
    assert result.macs == 2 * 4 * 8


@pytest.mark.filterwarnings("ignore")
def test_statically_quantised_convolution_is_a_conv_layer() -> None:
    model = nn.Sequential(
        torch.ao.quantization.QuantStub(),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        torch.ao.quantization.DeQuantStub(),
    ).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(model)
    prepared(image())
    result = trace(torch.ao.quantization.convert(prepared), image())
    conv = next(layer for layer in result if layer.kind == "conv")
    assert conv.dtype == "int8"
    assert conv.macs == 2 * 36 * 4 * 27
    assert result.route == "forward"


def test_products_of_bytes_are_products_in_the_dtype_of_their_operands() -> None:
    class Product(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return torch._int_mm(left, right)

    left, right = torch.zeros(64, 128, dtype=torch.int8), torch.zeros(128, 32, dtype=torch.int8)
    (product,) = trace(Product(), left, right)
    assert (product.kind, product.dtype) == ("matmul", "int8")
    assert product.outputs[0].dtype == "int32"
    assert product.macs == 64 * 128 * 32


# --- structure ------------------------------------------------------------------------------


def test_tied_weights_are_read_by_both_their_users() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(tokens))

    result = trace(Tied(), torch.tensor([[1, 2]]))
    assert [(layer.op, layer.path) for layer in result] == [
        ("embedding", "embed"), ("linear", "head"),
    ]  # fmt: skip


def test_module_lists_and_dictionaries_name_their_members() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.heads["b"](x)

    model = Wrap(
        forward,
        layers=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
        heads=nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)}),
    )
    result = trace(model, torch.randn(1, 4))
    assert [layer.path for layer in result] == ["layers.0", "layers.1", "heads.b"]


def test_data_parallel_is_one_device_s_share() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(4, 4)))
    assert [layer.path for layer in trace(model, torch.randn(2, 4))] == ["module.0"]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_checkpointed_blocks_are_listed_once(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, x, use_reentrant=reentrant)

    model = Wrap(forward, block=nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    result = trace(model, torch.randn(2, 4))
    assert [layer.path for layer in result] == ["block.0", "block.1"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_old_style_rescales_on_every_call() -> None:
    model = nn.utils.weight_norm(nn.Linear(4, 3))
    assert ops(trace(model, torch.randn(2, 4))) == ["weight_norm", "linear"]


def test_weight_norm_new_style_rescales_on_every_call() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert ops(trace(model, torch.randn(2, 4))) == ["weight_norm", "linear"]


def test_pruned_weight_is_masked_before_use() -> None:
    from torch.nn.utils import prune

    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", 0.5)
    result = trace(nn.Sequential(layer), torch.randn(2, 4))
    assert ops(result) == ["mul", "linear"]


def test_lazy_modules_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))
    result = trace(model, image())
    assert result.route == "forward"
    assert result.macs == 2 * 36 * 4 * 27 + 2 * 144 * 5
    assert isinstance(model[2], nn.LazyLinear)
    assert model[2].has_uninitialized_params()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_lazy_batch_norm_is_traced_as_after_a_first_call(momentum: float | None) -> None:
    def model() -> nn.Module:
        norm = nn.LazyBatchNorm2d(momentum=momentum)
        return nn.Sequential(nn.LazyConv2d(8, 3), norm, nn.Flatten(), nn.LazyLinear(4)).eval()

    lazy, called = model(), model()
    called(image())
    result = trace(lazy, image())
    assert [*result] == [*trace(called, image())]
    assert result.macs == 2 * (36 * 8 * 27 + 288 * 4)
    assert lazy[1].has_uninitialized_params()


def test_lazy_modules_of_one_s_own_make_their_parameters_once_and_unlisted() -> None:
    class Scale(LazyModuleMixin, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.UninitializedParameter()

        def initialize_parameters(self, x: torch.Tensor) -> None:
            self.scale.materialize(x.shape[-1:])
            nn.init.normal_(self.scale)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    assert ops(trace(Scale(), torch.randn(2, 4))) == ["mul"]


# --- threads, and what is too large ---------------------------------------------------------


class Branches(nn.Module):
    """Calls its branches in a pool of threads: a given one, or one of its own."""

    def __init__(self, pool: ThreadPoolExecutor | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            return sum(self.pool.map(lambda branch: branch(x), self.branches))
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(lambda branch: x @ branch.weight, self.branches))


def test_work_in_threads_is_noted() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread is there before the trace
        for model in (Branches(), Branches(pool)):
            assert any("other threads" in note for note in trace(model, torch.randn(4, 16)).notes)


def test_threads_outside_the_forward_are_no_matter() -> None:
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(nn.Linear(4, 4), torch.randn(2, 4))
        assert not trace(nn.Linear(4, 4), torch.randn(2, 4)).notes
        working.result()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(10**11),
        lambda: torch.arange(0, 10**11, dtype=torch.int32),
        lambda: torch.arange(start=0, end=10**12, step=10),
        lambda: torch.arange(0, end=10**11),
        lambda: torch.randperm(10**11),
        lambda: torch.linspace(0, 1, 10**11),
        lambda: torch.eye(10**6),
        lambda: torch.hann_window(10**11),
    ],
)
def test_ranges_of_a_hundred_gigabytes_are_never_made(make: Any) -> None:
    model = Wrap(lambda self, x: self.fc(x) + make().sum(), fc=nn.Linear(4, 4))
    result = trace(model, torch.randn(2, 4))
    assert result.route == "function"
    assert result.macs == 32


def test_user_hooks_run_and_are_listed() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda _module, _args, output: output * 2)
    model[0].register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    assert ops(trace(model, torch.randn(2, 4))) == ["add", "linear", "mul"]


def test_global_hooks_run() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda _module, _args, out: out * 2)
    try:
        assert ops(trace(nn.Linear(4, 4), torch.randn(2, 4))) == ["linear", "mul"]
    finally:
        handle.remove()


def test_forward_replaced_on_the_instance_is_the_one_traced() -> None:
    layer = nn.Linear(4, 4)
    layer.forward = F.relu  # type: ignore[method-assign]
    assert ops(trace(nn.Sequential(layer), torch.randn(2, 4))) == ["relu"]


def test_subclass_of_a_leaf_runs_its_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    assert ops(trace(Doubled(4, 4), torch.randn(2, 4))) == ["linear", "mul"]


# --- devices ------------------------------------------------------------------------------------


def test_cuda_inside_forward_traces_without_cuda() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.cuda() + torch.zeros(4, device="cuda")
        mask = torch.ones(4, dtype=torch.bool, device=x.device).to("cuda:0")
        return self.fc(x.to(device="cuda", dtype=torch.float32)).masked_fill(mask, 0.0).cpu()

    result = trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.randn(2, 4))
    assert result.route == "function"
    assert "linear" in ops(result)


def test_device_of_an_activation_is_where_the_inputs_are() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        assert not x.is_meta
        assert not x.is_cuda
        return self.fc(x) if x.device.type == "cpu" else x

    assert ops(trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.randn(2, 4))) == ["linear"]


# --- autograd, vmap, custom operations -------------------------------------------------------


def test_gradient_inside_forward_is_traced_at_aten_level() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        energy = self.fc(x).sum()
        return torch.autograd.grad(energy, x)[0]

    model = Wrap(forward, fc=nn.Linear(4, 3))
    result = trace(model, torch.randn(2, 4))
    assert result.route == "aten"
    products = [layer for layer in result if layer.macs]
    assert [layer.macs for layer in products] == [24, 24]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_backward_inside_forward_leaves_no_gradient() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        loss = F.mse_loss(self.fc(x), torch.zeros(2, 3))
        loss.backward()
        return loss

    model = Wrap(forward, fc=nn.Linear(4, 3))
    assert trace(model, torch.randn(2, 4)).route == "aten"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loss_inside_forward_needs_no_detour() -> None:
    def forward(self: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.fc(x), target)

    model = Wrap(forward, fc=nn.Linear(4, 3))
    result = trace(model, torch.randn(2, 4), torch.tensor([0, 2]))
    assert result.route == "function"
    assert ops(result) == ["linear", "log_softmax", "nll_loss"]


def test_vmap_over_activations_is_traced_at_aten_level() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: row @ self.fc.weight.t())(x)

    result = trace(Wrap(forward, fc=nn.Linear(4, 3)), torch.randn(2, 4))
    assert result.route == "aten"
    assert result.macs == 24


def test_vmap_over_positions_stays_real() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        mask = torch.vmap(lambda i: i >= torch.arange(4))(torch.arange(4))
        return self.fc(x).masked_fill(~mask, 0.0)

    result = trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.randn(4, 4))
    assert result.route == "function"


def test_custom_autograd_function_is_traced_inside() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2

    model = Wrap(lambda self, x: Double.apply(self.fc(x)), fc=nn.Linear(4, 4))
    assert ops(trace(model, torch.randn(2, 4))) == ["linear", "mul"]


@torch.library.custom_op("np_test::with_fake", mutates_args=())
def with_fake(x: torch.Tensor) -> torch.Tensor:
    return x.repeat(2, 1)


@with_fake.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(2 * x.shape[0], x.shape[1])


@torch.library.custom_op("np_test::without_fake", mutates_args=())
def without_fake(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.tile(x.numpy(), (1, 2)))


@pytest.mark.parametrize(
    ("function", "how", "shape"),
    [
        (with_fake, "torch's meta kernel", (4, 4)),
        (without_fake, "the real kernel on zeros", (2, 8)),
    ],
)
def test_custom_operation_is_uncovered_with_its_tensors(
    function: Any, how: str, shape: tuple[int, int]
) -> None:
    model = Wrap(lambda self, x: function(self.fc(x)), fc=nn.Linear(4, 4))
    result = trace(model, torch.randn(2, 4))
    layer = result[-1]
    assert (layer.kind, layer.covered) == ("uncovered", False)
    assert layer.inputs[0].shape == (2, 4)
    assert layer.outputs[0].shape == shape
    assert any(line.endswith(how) for line in result.fallbacks)


def test_fft_says_who_answered() -> None:
    result = trace(Wrap(lambda _self, x: torch.fft.rfft(x).abs()), torch.randn(2, 8))
    assert result[0].outputs[0] == ((2, 5), "complex64")
    assert result.fallbacks[0].startswith("fft_rfft: ")


# --- in place and stateful ---------------------------------------------------------------------


def test_state_changed_by_forward_comes_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.calls = 0
            self.seen: list[Any] = []
            self.register_buffer("total", torch.zeros(1))
            self.register_buffer("last", torch.zeros(2, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.seen.append(x)
            self.extra = x
            self.total += 1
            self.last.copy_(x)
            return self.fc(x) + self.last

    model = Counting()
    trace(model, torch.randn(2, 4))
    assert model.calls == 0
    assert model.seen == []
    assert not hasattr(model, "extra")
    assert model.total.item() == 0
    assert model.last.eq(0).all()


def test_reading_a_buffer_that_an_activation_was_written_to_needs_values() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("peak", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.peak.copy_(x.max())
            return x * 2 if self.peak.item() > 0 else x

    model = Remembering()
    result = trace(model, torch.ones(2))
    assert result.route == "forward"
    assert ops(result)[-1] == "mul"
    assert model.peak.item() == 0


def test_in_place_operations_keep_their_plain_name() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        x += 1
        x.mul_(2).clamp_(min=0)
        return F.relu(x, inplace=True)

    result = trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.randn(2, 4))
    assert ops(result) == ["linear", "add", "mul", "clamp", "relu"]
    assert [layer.param("inplace") for layer in result] == [None, True, True, True, True]


def test_operations_that_return_a_new_tensor_are_not_in_place() -> None:
    result = trace(Wrap(lambda _, x: F.relu(x + 1) * x), torch.randn(2, 4))
    assert [layer.param("inplace") for layer in result] == [None, None, None]


def test_assignment_to_a_slice_writes_the_slice_only() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(2, 3, 4)
        for step in range(3):
            out[:, step] = self.fc(x)
        return self.fc(out)

    result = trace(Wrap(forward, fc=nn.Linear(4, 4)), torch.randn(2, 4))
    written = [layer for layer in result if layer.op == "setitem"]
    assert [layer.outputs[0].shape for layer in written] == [(2, 4)] * 3
    assert result[-1].inputs[0].shape == (2, 3, 4)


# --- operations -----------------------------------------------------------------------------


def test_einsum_counts_its_contraction_whatever_the_order_of_its_axes() -> None:
    def forward(self: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,cd->bdhw", a, b)

    (layer,) = trace(Wrap(forward), torch.randn(2, 3, 4, 5), torch.randn(3, 7))
    assert layer.kind == "matmul"
    assert layer.param("reduced") == 3
    assert layer.macs == 2 * 20 * 3 * 7


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bag_reads_its_rows(mode: str) -> None:
    bag = nn.EmbeddingBag(100, 8, mode=mode)
    (layer,) = trace(bag, torch.tensor([1, 2, 4, 5]), torch.tensor([0, 3]))
    assert layer.outputs[0].shape == (2, 8)
    assert layer.cost.bytes_weight == 4 * 8 * 4


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9), 2 * 6 * 4 * 12),
        (nn.Conv3d(2, 4, 3, groups=2), (1, 2, 5, 5, 5), 4 * 27 * 27),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 3, 3), 2 * 4 * 9 * 6 * 4),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (1, 4, 5), 4 * 5 * 3 * 3),
    ],
)
def test_convolutions_of_every_dimension(layer: Any, shape: Any, macs: int) -> None:
    (traced,) = trace(layer, torch.randn(*shape))
    assert traced.macs == macs
    assert traced.outputs[0].shape == tuple(layer(torch.randn(*shape)).shape)


def test_topk_and_gather_route_a_mixture_of_experts() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == index)
            out[rows] += expert(x[rows]) * scores[rows, slot, None]
        return out

    torch.manual_seed(0)
    experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    model = Wrap(forward, gate=nn.Linear(4, 3), experts=experts)
    result = trace(model, torch.randn(5, 4))
    assert result.route == "forward"  # which rows an expert gets depends on values
    assert "topk" in ops(result)
    routed = sum(layer.macs for layer in result if layer.path.startswith("experts"))
    assert routed == 5 * 2 * 16


def test_gather_reads_what_it_returns() -> None:
    def forward(self: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(1, index)

    (layer,) = trace(Wrap(forward), torch.randn(2, 100), torch.zeros(2, 3, dtype=torch.int64))
    assert layer.op == "gather"
    assert layer.cost.bytes_in == 2 * 3 * 4 + 2 * 3 * 8


# --- modes ----------------------------------------------------------------------------------


def test_training_mode_lists_dropout_and_leaves_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    result = trace(model, image())
    assert ops(result) == ["conv2d", "batch_norm", "dropout"]
    assert result[1].param("training") is True
    assert model[1].num_batches_tracked.item() == 0
    assert model[1].running_mean.eq(0).all()


def test_hugging_face_cache_comes_back_as_it_was() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=30,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    cache = transformers.DynamicCache()
    with torch.no_grad():  # by position: the cache's name differs between releases
        model(torch.ones(1, 5, dtype=torch.int64), None, None, cache, use_cache=True)
    keys = cache.layers[0].keys
    values = keys.clone()
    result = trace(model, torch.ones(1, 1, dtype=torch.int64), None, None, cache, use_cache=True)
    assert cache.get_seq_length() == 5
    assert cache.layers[0].keys is keys
    assert torch.equal(keys, values)
    attention = next(layer for layer in result if layer.kind == "attention")
    assert attention.inputs[1].shape[2] == 6


def test_generation_inside_forward_is_run_for_real() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=32, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    lm = transformers.GPT2LMHeadModel(config).eval()

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm.generate(tokens, max_new_tokens=3, min_new_tokens=3, do_sample=False)

    result = trace(Wrap(forward, lm=lm).eval(), torch.ones(1, 4, dtype=torch.int64))
    assert sum(layer.path == "lm.lm_head" for layer in result) == 3


def test_module_that_runs_unseen_code_is_noted() -> None:
    class Extension(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch._C.DisableTorchFunction():
                return x.as_strided((2, 4), (4, 1))

    with warnings.catch_warnings():
        result = trace(nn.Sequential(Extension()), torch.randn(2, 4))
    assert any("'0' (Extension) ran, but none of its parameters" in note for note in result.notes)


def test_conversion_that_changes_nothing_keeps_a_weight_a_weight() -> None:
    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale.to(x.dtype).contiguous()

    (layer,) = trace(Converts(), torch.randn(2, 4))
    assert layer.weights == (((4,), "float32"),)
    assert layer.inputs == (((2, 4), "float32"),)


def test_result_written_into_a_given_tensor_is_that_tensor() -> None:
    def forward(_self: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(2, 4)
        torch.add(x, x, out=out)
        return out * 2 if out.sum() > 0 else out  # unknown by then: only a real forward can tell

    result = trace(Wrap(forward), torch.ones(2, 4))
    assert result.route == "forward"
    assert ops(result)[-1] == "mul"
