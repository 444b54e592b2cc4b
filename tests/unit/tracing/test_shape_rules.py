"""Each shape rule answers as torch's kernel does: shape, dtype and strides, or refuses alike."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pytest_neuralpower.tracing.fallbacks import tensors_in
from pytest_neuralpower.tracing.recorder import Recorder
from pytest_neuralpower.tracing.rules import entry_of, merged

small = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ANY = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]


def lay_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A meta tensor, in one of the layouts that models meet."""
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "channels_last" and len(shape) == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and len(shape) > 1:
        swapped = (*shape[:-2], shape[-1], shape[-2])
        return torch.empty(swapped, dtype=dtype, device="meta").transpose(-1, -2)
    if layout == "sliced" and shape:
        wide = (*shape[:-1], shape[-1] + 3)
        return torch.empty(wide, dtype=dtype, device="meta")[..., 1:-2]
    if layout == "expanded" and shape:
        return torch.empty((*shape[:-1], 1), dtype=dtype, device="meta").expand(shape)
    return tensor


LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced"]
sizes = st.integers(1, 6)


@st.composite
def tensors(
    draw: Any,
    ranks: tuple[int, int] = (0, 4),
    dtypes: list[torch.dtype] = FLOATS,
    layouts: list[str] = LAYOUTS,
) -> torch.Tensor:
    rank = draw(st.integers(*ranks))
    shape = tuple(draw(sizes) for _ in range(rank))
    return lay_out(shape, draw(st.sampled_from(layouts)), draw(st.sampled_from(dtypes)))


def outlines(result: Any) -> list[tuple[Any, ...]]:
    """Shape, dtype and strides of each result; a dimension of one may have any stride."""
    found = []
    for tensor in tensors_in(result):
        strides = tuple(
            stride if size > 1 else None
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        found.append((tuple(tensor.shape), tensor.dtype, strides if tensor.numel() else None))
    return found


def answer(function: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """What the function's rule returns."""
    _, op, rule = entry_of(function)
    return rule(recorder, op, *args, **kwargs)  # type: ignore[misc]


def check(
    function: Any, *args: Any, device: str = "meta", refused: bool = True, **kwargs: Any
) -> None:
    """Hold the rule of a function against the function itself.

    ``device="cpu"`` compares with the real kernel, where torch's meta kernel says itself that it
    does not know the layout.
    """
    assert entry_of(function).rule is not None

    def real(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and device != "meta":
            made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            return made.zero_()
        if isinstance(value, (list, tuple)):
            return type(value)([real(item) for item in value])
        return value

    recorder = Recorder()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            expected = function(*real(args), **{name: real(item) for name, item in kwargs.items()})
        except (RuntimeError, IndexError, ValueError, TypeError, AssertionError):
            expected = None
        try:
            found = answer(function, recorder, *args, **kwargs)
        except Exception:
            found = None
            if expected is not None and refused:
                raise
    if expected is None:
        assert found is None, "the rule accepts what torch refuses"
        return
    if found is not None:
        assert outlines(found) == outlines(expected)


UNARY = [
    torch.relu, torch.exp, torch.sqrt, torch.tanh, torch.sigmoid, torch.erf, torch.rsqrt,
    torch.sin, torch.abs, torch.neg, torch.floor, torch.logical_not, torch.isnan,
    torch.reciprocal, torch.log, torch.square,
]  # fmt: skip


@pytest.mark.parametrize("function", UNARY, ids=lambda function: function.__name__)
@small
@given(x=tensors(dtypes=ANY))
def test_unary(function: Any, x: torch.Tensor) -> None:
    check(function, x, refused=False)


@pytest.mark.parametrize(
    "function",
    [F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, F.hardsigmoid, F.softplus, F.mish,
     F.hardtanh, F.relu6, F.softsign, F.logsigmoid, F.selu, F.celu],
    ids=lambda function: function.__name__,
)  # fmt: skip
@small
@given(x=tensors(dtypes=[torch.float32, torch.bfloat16]))
def test_activation(function: Any, x: torch.Tensor) -> None:
    check(function, x)


@st.composite
def operands(draw: Any, count: int = 2, dtypes: list[torch.dtype] = ANY) -> list[torch.Tensor]:
    """Tensors that broadcast together, in any layout."""
    rank = draw(st.integers(0, 4))
    shape = [draw(sizes) for _ in range(rank)]
    made = []
    for _ in range(count):
        own = [size if draw(st.booleans()) else 1 for size in shape]
        own = own[draw(st.integers(0, rank)) :] if draw(st.booleans()) else own
        layout = draw(st.sampled_from([*LAYOUTS, "expanded"]))
        made.append(lay_out(tuple(own), layout, draw(st.sampled_from(dtypes))))
    return made


@pytest.mark.parametrize(
    "function",
    [torch.add, torch.mul, torch.sub, torch.div, torch.maximum, torch.eq, torch.lt, torch.atan2,
     torch.logical_and, torch.remainder, torch.floor_divide],
    ids=lambda function: function.__name__,
)  # fmt: skip
@small
@given(pair=operands())
def test_binary(function: Any, pair: list[torch.Tensor]) -> None:
    # The meta kernels of the logical operations lay out otherwise than the real ones.
    device = "cpu" if function is torch.logical_and else "meta"
    check(function, *pair, refused=False, device=device)


@small
@given(x=tensors(dtypes=ANY), number=st.sampled_from([2, 2.5, True]))
def test_binary_with_a_number(x: torch.Tensor, number: Any) -> None:
    for function in (torch.add, torch.mul, torch.div, torch.pow, torch.Tensor.__radd__):
        # The meta kernel of pow makes integers of booleans, the real one does not.
        device = "cpu" if function is torch.pow and x.dtype is torch.bool else "meta"
        check(function, x, number, refused=False, device=device)


@small
@given(three=operands(3, [torch.float32]))
def test_three_operands(three: list[torch.Tensor]) -> None:
    check(torch.addcmul, *three)
    check(torch.lerp, *three)
    condition = torch.empty_strided(
        three[0].shape, three[0].stride(), dtype=torch.bool, device="meta"
    )
    check(torch.where, condition, three[1], three[2])


@small
@given(pair=operands(2, [torch.float32]))
def test_operands_that_do_not_broadcast_are_refused(pair: list[torch.Tensor]) -> None:
    left = torch.empty(2, 3, device="meta")
    assume(pair[0].ndim and pair[0].shape[-1] not in (1, 3))
    check(torch.add, left, pair[0])


@st.composite
def convolutions(draw: Any, transposed: bool) -> tuple[Any, ...]:
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    size = tuple(draw(st.integers(1, 8)) for _ in range(dims))
    batch = (draw(st.integers(1, 2)),) if draw(st.booleans()) else ()
    layout = draw(st.sampled_from(["contiguous", "channels_last"]))
    x = lay_out((*batch, into, *size), layout, torch.float32)
    shape = (into, out // groups, *kernel) if transposed else (out, into // groups, *kernel)
    weight = torch.empty(shape, device="meta")
    number = st.integers(1, 3)
    stride = draw(st.one_of(number, st.tuples(*[number] * dims)))
    padding = draw(st.integers(0, 2))
    dilation = draw(st.integers(1, 2))
    if transposed:
        extra = draw(st.integers(0, 2))
        return dims, x, weight, stride, padding, extra, groups, dilation
    if draw(st.booleans()) and stride == 1:
        padding = draw(st.sampled_from(["same", "valid"]))
    return dims, x, weight, stride, padding, dilation, groups


@small
@given(case=convolutions(transposed=False))
def test_convolution(case: tuple[Any, ...]) -> None:
    dims, x, weight, *rest = case
    bias = torch.empty(weight.shape[0], device="meta")
    check(getattr(torch, f"conv{dims}d"), x, weight, bias, *rest, device="cpu")


@small
@given(case=convolutions(transposed=True))
def test_transposed_convolution(case: tuple[Any, ...]) -> None:
    dims, x, weight, *rest = case
    function = getattr(torch, f"conv_transpose{dims}d")
    # Results of no element are left to a fallback.
    check(function, x, weight, None, *rest, device="cpu", refused=False)


@small
@given(x=tensors((1, 4), [torch.float32]), out=sizes, wrong=st.booleans())
def test_linear(x: torch.Tensor, out: int, wrong: bool) -> None:
    weight = torch.empty(out, x.shape[-1] + wrong, device="meta")
    check(F.linear, x, weight)
    check(F.linear, x, weight, torch.empty(out, device="meta"))


@small
@given(left=tensors((1, 4), [torch.float32]), right=tensors((1, 4), [torch.float32]))
def test_matmul(left: torch.Tensor, right: torch.Tensor) -> None:
    # Equal inner sizes most of the time, so that products are met and not only refusals.
    if right.ndim > 1:
        right = torch.empty((*right.shape[:-2], left.shape[-1], right.shape[-1]), device="meta")
    shape_only(torch.matmul, left, right)


def shape_only(function: Any, *args: Any, **kwargs: Any) -> None:
    """As :func:`check`, without strides: torch's own differ with the shortcut it takes."""
    with torch.no_grad():
        try:
            expected = function(*args, **kwargs)
        except (RuntimeError, IndexError):
            expected = None
    try:
        found = answer(function, Recorder(), *args, **kwargs)
    except Exception:
        found = None
    assert (found is None) == (expected is None)
    if expected is not None:
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@small
@given(b=sizes, m=sizes, k=sizes, n=sizes, wrong=st.booleans())
def test_batched_products(b: int, m: int, k: int, n: int, wrong: bool) -> None:
    left = torch.empty(b, m, k + wrong, device="meta")
    right = torch.empty(b, k, n, device="meta")
    check(torch.bmm, left, right)
    check(torch.baddbmm, torch.empty(n, device="meta"), left, right)
    check(torch.mm, left[0], right[0])
    check(torch.addmm, torch.empty(m, n, device="meta"), left[0], right[0])
    shape_only(torch.einsum, "bmk,bkn->bnm", left, right)


@small
@given(b=sizes, m=sizes, k=sizes, n=sizes)
def test_an_einsum_multiplies_matrices_where_torch_does(b: int, m: int, k: int, n: int) -> None:
    left, right = torch.empty(b, m, k, device="meta"), torch.empty(b, k, n, device="meta")
    recorder = Recorder()
    answer(torch.einsum, recorder, "bmk,bkn->bnm", left, right)
    with FlopCounterMode(display=False) as counter:
        torch.einsum("bmk,bkn->bnm", left, right)
    assert sum(layer.macs for layer in recorder.layers) == counter.get_total_flops() // 2


def test_products_by_a_parameter_are_linear_layers() -> None:
    """As decomposed graphs spell linear layers, and GPT-2 does."""
    weight, bias = torch.nn.Parameter(torch.empty(8, 5)), torch.nn.Parameter(torch.empty(8))
    x = torch.empty(3, 5, device="meta")
    expected = Recorder()
    answer(F.linear, expected, x, weight, bias)
    for turned in (weight.t(), torch.nn.Parameter(torch.empty(5, 8))):
        recorder = Recorder()
        check(torch.addmm, bias.to("meta"), x, turned.to("meta"))
        answer(torch.addmm, recorder, bias, x, turned)
        answer(torch.mm, recorder, x, turned)
        assert recorder.layers[0] == expected.layers[0]
        assert (recorder.layers[1].kind, recorder.layers[1].macs) == ("linear", 3 * 5 * 8)


@st.composite
def pools(draw: Any) -> tuple[Any, ...]:
    dims = draw(st.integers(1, 3))
    batch = tuple(draw(sizes) for _ in range(draw(st.integers(1, 2))))
    size = tuple(draw(st.integers(1, 9)) for _ in range(dims))
    # Some real kernels refuse channels_last without a batch.
    layouts = ["contiguous", "channels_last"] if dims == len(batch) == 2 else ["contiguous"]
    x = lay_out((*batch, *size), draw(st.sampled_from(layouts)), torch.float32)
    kernel = draw(st.integers(1, 4))
    stride = draw(st.one_of(st.none(), st.integers(1, 3)))
    return dims, x, kernel, stride, draw(st.integers(0, 2)), draw(st.booleans())


@small
@given(case=pools())
def test_pooling(case: tuple[Any, ...]) -> None:
    dims, x, kernel, stride, padding, ceil = case
    # The real kernels: those on meta keep channels_last for some dimensions only.
    # A window wider than its input is left to a fallback: kernels differ.
    average, maximum = getattr(F, f"avg_pool{dims}d"), getattr(torch, f"max_pool{dims}d")
    check(average, x, kernel, stride, padding, ceil, device="cpu", refused=False)
    check(maximum, x, kernel, stride, padding, 1, ceil, device="cpu", refused=False)


@small
@given(case=pools(), size=st.integers(1, 4))
def test_adaptive_pooling(case: tuple[Any, ...], size: int) -> None:
    dims, x = case[:2]
    adaptive = getattr(F, f"adaptive_avg_pool{dims}d")
    if dims == 1:
        adaptive = torch.adaptive_avg_pool1d
    check(adaptive, x, size, device="cpu")


@small
@given(x=tensors((2, 4), [torch.float32]))
def test_normalisation(x: torch.Tensor) -> None:
    channels = torch.empty(x.shape[1], device="meta")
    check(F.batch_norm, x, channels, channels, channels, channels, device="cpu")
    check(F.layer_norm, x, x.shape[-1:], device="cpu")
    check(F.group_norm, x, 1, device="cpu")
    if x.shape[1] % 2 == 0:
        check(F.group_norm, x, 2, device="cpu")


@pytest.mark.parametrize(
    "function",
    [torch.sum, torch.mean, torch.amax, torch.amin, torch.logsumexp, torch.std, torch.var],
    ids=lambda function: function.__name__,
)
@small
@given(x=tensors((1, 4), [torch.float32, torch.int32]), dim=st.integers(-5, 4), keep=st.booleans())
def test_reduction(function: Any, x: torch.Tensor, dim: int, keep: bool) -> None:
    check(function, x, dim, keepdim=keep, refused=False)


@small
@given(x=tensors((1, 4), [torch.float32]), dim=st.integers(-4, 3), keep=st.booleans())
def test_reduction_with_indices(x: torch.Tensor, dim: int, keep: bool) -> None:
    check(torch.max, x, dim, keep)
    check(torch.argmax, x, dim, keep)
    check(torch.any, x, dim, keep)
    check(torch.cumsum, x, dim)
    check(torch.sort, x, dim, device="cpu")  # on meta a dimension out of range passes
    check(torch.topk, x, 2, dim, device="cpu")
    check(torch.Tensor.softmax, x, dim, device="cpu")
    check(torch.log_softmax, x, dim, device="cpu")


@small
@given(pair=operands(2, [torch.float32, torch.float16]), dim=st.integers(-3, 3))
def test_cat_and_stack(pair: list[torch.Tensor], dim: int) -> None:
    check(torch.cat, pair, dim)
    check(torch.stack, pair, dim, device="cpu")


@small
@given(x=tensors((0, 4), ANY), other=st.sampled_from(ANY))
def test_conversion(x: torch.Tensor, other: torch.dtype) -> None:
    check(torch.Tensor.to, x, other)
    check(torch.Tensor.float, x)
    check(torch.clone, x)
    check(torch.Tensor.contiguous, x)


@small
@given(x=tensors((1, 4), [torch.float32]), data=st.data())
def test_reshape(x: torch.Tensor, data: st.DataObject) -> None:
    factors = list(x.shape)
    at = data.draw(st.integers(0, len(factors)))
    check(torch.reshape, x, (*factors[:at], -1))
    check(torch.Tensor.reshape, x, -1)
    start, end = data.draw(st.integers(0, x.ndim)), data.draw(st.integers(0, x.ndim))
    check(torch.flatten, x, start, end)


@small
@given(x=tensors((2, 4), [torch.float32]), pad=st.lists(st.integers(-2, 3), min_size=1, max_size=4))
def test_pad(x: torch.Tensor, pad: list[int]) -> None:
    check(F.pad, x, pad, refused=False)


@small
@given(
    x=tensors((3, 4), [torch.float32], ["contiguous", "channels_last"]),
    scale=st.sampled_from([0.5, 1.5, 2, 3]),
)
def test_interpolate(x: torch.Tensor, scale: float) -> None:
    check(F.interpolate, x, scale_factor=scale, device="cpu")
    if x.ndim == 4:
        check(F.interpolate, x, size=(5, 3), mode="bilinear", device="cpu")


INDICES = [
    0, -1, slice(1, None), None, Ellipsis, [0, 0], torch.zeros(2, dtype=torch.int64),
    torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), slice(None),
]  # fmt: skip


@small
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    index=st.lists(st.sampled_from(range(len(INDICES))), min_size=1, max_size=4),
)
def test_indexing(shape: list[int], index: list[int]) -> None:
    x = torch.empty(shape, device="meta")
    items = tuple(INDICES[place] for place in index)
    assume(sum(item is Ellipsis for item in items) < 2)
    # Torch's meta kernel refuses nothing here that the real one accepts, and is never wrong.
    check(torch.Tensor.__getitem__, x, items)


@small
@given(shape=st.tuples(sizes, sizes, sizes), data=st.data())
def test_boolean_indexing(shape: tuple[int, ...], data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    mask = torch.zeros(shape[:rank], dtype=torch.bool)
    mask.view(-1)[0] = True
    x = torch.empty(shape, device="meta")
    found = answer(torch.Tensor.__getitem__, Recorder(), x, mask)
    assert tuple(found.shape) == tuple(torch.zeros(shape)[mask].shape)


@small
@given(
    batch=sizes, heads=sizes, length=sizes, source=sizes, width=sizes, value=sizes,
    wrong=st.booleans(),
)  # fmt: skip
def test_attention(  # noqa: PLR0917 - hypothesis passes them by name
    batch: int, heads: int, length: int, source: int, width: int, value: int, wrong: bool
) -> None:
    query = torch.empty(batch, heads, length, width, device="meta")
    key = torch.empty(batch, heads, source, width + wrong, device="meta")
    values = torch.empty(batch, heads, source, value, device="meta")
    shape_only(F.scaled_dot_product_attention, query, key, values)


@pytest.mark.filterwarnings("ignore")  # torch's own, on projections
@small
@given(
    layers=st.integers(1, 2), both=st.booleans(), first=st.booleans(),
    proj=st.sampled_from([0, 2]), steps=sizes, batch=sizes,
)  # fmt: skip
def test_recurrent(  # noqa: PLR0917 - likewise
    layers: int, both: bool, first: bool, proj: int, steps: int, batch: int
) -> None:
    from pytest_neuralpower.tracing import trace

    lstm = torch.nn.LSTM(3, 4, layers, bidirectional=both, batch_first=first, proj_size=proj)
    x = torch.randn(batch, steps, 3) if first else torch.randn(steps, batch, 3)
    with torch.no_grad():
        output, (hidden, cell) = lstm(x)
    layer = next(layer for layer in trace(lstm, x) if layer.kind == "rnn")
    assert [spec.shape for spec in layer.outputs] == [
        tuple(tensor.shape) for tensor in (output, hidden, cell)
    ]


def test_a_function_has_one_rule() -> None:
    with pytest.raises(ValueError, match="named in two tables of rules: relu"):
        merged({"relu": "view", "gelu": "view"}, {"relu": "plain"})


@pytest.mark.parametrize(
    ("function", "treatment", "op"),
    [
        (torch.relu, "rule", "relu"),
        (torch.relu_, "rule", "relu"),
        (torch.Tensor.__rsub__, "rule", "sub"),
        (torch.Tensor.__ipow__, "rule", "pow"),
        (torch.rand, "factory", "rand"),
        (torch.Tensor.unfold, "view", "unfold"),
        (F.unfold, "rule", "unfold"),
        (torch.Tensor.shape.__get__, "plain", "shape"),  # type: ignore[attr-defined]
        (torch.Tensor.grad.__set__, "assign", "grad"),  # type: ignore[attr-defined]
        (torch.linalg.svd, "unknown", ""),
    ],
)
def test_every_spelling_of_a_function_is_found(function: Any, treatment: str, op: str) -> None:
    assert entry_of(function)[:2] == (treatment, op)


def test_another_function_of_the_same_name_is_not_torchs() -> None:
    def relu(x: torch.Tensor) -> torch.Tensor:
        return x

    assert entry_of(relu).treatment == "unknown"
