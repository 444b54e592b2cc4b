"""What moves data without computing: copies, concatenation, padding, resampling."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import REMEMBERED, OperationPlan, planned, spec_of
from pytest_neuralpower.tracing.rules.conv import full
from pytest_neuralpower.tracing.rules.elementwise import unary
from pytest_neuralpower.tracing.strides import (
    Ints,
    broadcast_shapes,
    channels_last_strides,
    is_channels_last,
)

if TYPE_CHECKING:
    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule


def _cat(
    recorder: Recorder,
    op: str,
    tensors: Any,
    dim: int = 0,
    *,
    axis: int | None = None,
    out: Any = None,
) -> Tensor:
    if out is not None:
        raise NoRule
    outlines = tuple([(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors])
    recorder.note_seen(*tensors)
    weights = tuple([type(tensor) is Parameter for tensor in tensors])
    plan = _plan_cat(op, outlines, weights, dim if axis is None else axis)
    return recorder.follow(plan, tensors)


@lru_cache(REMEMBERED)
def _plan_cat(
    op: str,
    given: tuple[tuple[Ints, Ints, torch.dtype], ...],
    weights: tuple[bool, ...],
    dim: int,
) -> OperationPlan:
    # A 1-d empty tensor among tensors of another rank is skipped, for old times' sake.
    parts = [outline for outline in given if outline[0] != (0,)] or given
    first, _, dtype = parts[0]
    rank = len(first)
    if not rank or not -rank <= dim < rank:
        raise NoRule
    dim %= rank
    total = 0
    for own, _, other in parts:
        if len(own) != rank or any(own[axis] != first[axis] for axis in range(rank) if axis != dim):
            raise NoRule
        total += own[dim]
        dtype = torch.promote_types(dtype, other)
    shape = (*first[:dim], total, *first[dim + 1 :])
    last = all(is_channels_last(own, strides) for own, strides, _ in parts)
    specs = [spec_of(own, other) for own, _, other in given]
    return planned(
        "memory", op,
        tuple(spec for spec, weight in zip(specs, weights, strict=True) if not weight),
        shape, dtype,
        weights=tuple(spec for spec, weight in zip(specs, weights, strict=True) if weight),
        params=(("dim", dim),),
        strides=channels_last_strides(shape) if last else None,
    )  # fmt: skip


def _stack(recorder: Recorder, op: str, tensors: Any, dim: int = 0, *, out: Any = None) -> Tensor:
    shape = tensors[0].shape
    rank = len(shape) + 1
    if out is not None or not -rank <= dim < rank:
        raise NoRule
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.shape != shape:
            raise NoRule
        dtype = torch.promote_types(dtype, tensor.dtype)
    dim %= rank
    return recorder.result("memory", op, tensors, (*shape[:dim], len(tensors), *shape[dim:]), dtype)


def _cat_along(recorder: Recorder, op: str, tensors: Any, axis: int) -> Tensor:
    # Below two dimensions hstack and vstack reshape first.
    if min(tensor.ndim for tensor in tensors) < 2:
        raise NoRule
    return _cat(recorder, op, tensors, axis)


def _clone(
    recorder: Recorder,
    op: str,
    input: Tensor,
    *,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    return _copy(recorder, op, input, input.dtype, memory_format)


def _copy(
    recorder: Recorder, op: str, input: Tensor, dtype: torch.dtype, memory_format: Any
) -> Tensor:
    if memory_format in (None, torch.preserve_format):
        output = recorder.like(input, dtype)
    elif memory_format is torch.contiguous_format:
        output = recorder.new(input.shape, dtype)
    else:
        shape = tuple(input.shape)
        if len(shape) != (4 if memory_format is torch.channels_last else 5):
            raise NoRule
        output = recorder.new(shape, dtype, channels_last_strides(shape))
    return recorder.record("memory", op, (input,), output)


def _contiguous(
    recorder: Recorder,
    op: str,
    input: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Free where the layout is already the one asked for."""
    if input.is_contiguous(memory_format=memory_format):
        return input
    return _copy(recorder, op, input, input.dtype, memory_format)


def cast(
    recorder: Recorder,
    input: Tensor,
    dtype: torch.dtype | None,
    memory_format: Any = None,
    copy: bool = False,
) -> Tensor:
    """A conversion; free where nothing changes. Moving to another device is free, too: the
    model's energy on the device does not include bringing its input there."""
    dtype = dtype or input.dtype
    if memory_format in (None, torch.preserve_format):
        same_format = True
    else:
        same_format = input.is_contiguous(memory_format=memory_format)
    if dtype is input.dtype and same_format and not copy:
        return input
    return _copy(recorder, "to", input, dtype, memory_format)


def _to(
    recorder: Recorder,
    op: str,
    input: Tensor,
    *args: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = None,
    other: Tensor | None = None,
) -> Tensor:
    flags = []
    for arg in args:
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, Tensor):
            dtype = arg.dtype
        elif isinstance(arg, bool):
            flags.append(arg)
    if other is not None:
        dtype = other.dtype
    return cast(recorder, input, dtype, memory_format, copy or flags[1:] == [True])


def _type(
    recorder: Recorder, op: str, input: Tensor, dtype: Any = None, non_blocking: bool = False
) -> Any:
    if isinstance(dtype, torch.dtype):
        return cast(recorder, input, dtype)
    raise NoRule


def _cast_method(
    recorder: Recorder, op: str, input: Tensor, *args: Any, target: Any, **named: Any
) -> Tensor:
    return cast(recorder, input, target, named.get("memory_format"))


def _reshape(recorder: Recorder, input: Tensor, shape: Ints) -> Tensor:
    """A view where the strides allow it, a copy elsewhere."""
    try:
        return input.view(shape)
    except RuntimeError:
        pass  # its strides do not allow it, or its size
    if -1 in shape:
        known = -math.prod(shape)
        if known == 0 or input.numel() % known or shape.count(-1) > 1:
            raise NoRule
        shape = tuple(input.numel() // known if size == -1 else size for size in shape)
    if math.prod(shape) != input.numel():
        raise NoRule
    return recorder.result("memory", "reshape", (input,), shape, input.dtype)


def _reshape_to(recorder: Recorder, op: str, input: Tensor, *shape: Any, **named: Any) -> Tensor:
    wanted = named.get("shape", shape[0] if len(shape) == 1 else shape)
    if isinstance(wanted, int):
        wanted = (wanted,)
    return _reshape(recorder, input, tuple(map(int, wanted)))


def _reshape_as(recorder: Recorder, op: str, input: Tensor, other: Tensor) -> Tensor:
    return _reshape(recorder, input, tuple(other.shape))


def flatten(
    recorder: Recorder, op: str, input: Tensor, start_dim: int = 0, end_dim: int = -1
) -> Tensor:
    shape = tuple(input.shape)
    rank = len(shape)
    if not isinstance(start_dim, int):
        raise NoRule  # named dimensions
    if rank == 0:
        return _reshape(recorder, input, (1,))
    if not -rank <= start_dim < rank or not -rank <= end_dim < rank:
        raise NoRule
    start, end = start_dim % rank, end_dim % rank
    if start > end:
        raise NoRule
    if start == end:
        return input
    merged = math.prod(shape[start : end + 1])
    return _reshape(recorder, input, (*shape[:start], merged, *shape[end + 1 :]))


def _ravel(recorder: Recorder, op: str, input: Tensor) -> Tensor:
    """A copy wherever the elements do not lie one after the other, even where a view could do."""
    return _reshape(recorder, _contiguous(recorder, "contiguous", input), (input.numel(),))


def _pad(
    recorder: Recorder, op: str, input: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    shape = list(input.shape)
    pad = tuple(pad)
    if len(pad) % 2 or len(pad) > 2 * len(shape):
        raise NoRule
    for axis in range(len(pad) // 2):
        before, after = pad[2 * axis], pad[2 * axis + 1]
        size = shape[-1 - axis]
        if isinstance(mode, str) and mode == "reflect" and max(before, after) >= size:
            raise NoRule
        shape[-1 - axis] = size + before + after
        if shape[-1 - axis] < 0:
            raise NoRule
    if not any(pad):
        output = recorder.like(input)  # padding by nothing still copies
    elif max(pad) <= 0:
        raise NoRule  # a crop copies its view, whose layout decides
    else:
        output = recorder.formatted(input, tuple(shape), input.dtype)
    named = mode if isinstance(mode, str) else "constant"
    return recorder.record("memory", op, (input,), output, mode=named, padding=pad)


def _interpolate(
    recorder: Recorder,
    op: str,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    shape = tuple(input.shape)
    dims = len(shape) - 2
    ranks = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
    if dims < 1 or (size is None) == (scale_factor is None) or ranks.get(mode, dims) != dims:
        raise NoRule
    if size is not None:
        spatial = (size,) * dims if isinstance(size, int) else tuple(map(int, size))
    else:
        factors = (
            tuple(scale_factor) if isinstance(scale_factor, (tuple, list))
            else (scale_factor,) * dims
        )  # fmt: skip
        spatial = tuple(
            math.floor(float(length) * float(factor))
            for length, factor in zip(shape[2:], factors, strict=True)
        )
    if len(spatial) != dims or min(spatial) <= 0:
        raise NoRule
    output = recorder.formatted(input, (*shape[:2], *spatial), input.dtype)
    return recorder.record("memory", op, (input,), output, mode=mode)


def _grid_sample(
    recorder: Recorder,
    op: str,
    input: Tensor,
    grid: Tensor,
    mode: Any = "bilinear",
    padding_mode: Any = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    if input.ndim != grid.ndim or input.shape[0] != grid.shape[0] or input.ndim not in (4, 5):
        raise NoRule
    shape = (*input.shape[:2], *grid.shape[1:-1])
    return recorder.result("memory", op, (input, grid), shape, input.dtype)


def _repeat(recorder: Recorder, op: str, input: Tensor, *repeats: Any) -> Tensor:
    times = repeats[0] if len(repeats) == 1 and not isinstance(repeats[0], int) else repeats
    missing = len(times) - input.ndim
    if missing < 0:
        raise NoRule
    shape = (1,) * missing + tuple(input.shape)
    out = tuple(size * int(time) for size, time in zip(shape, times, strict=True))
    return recorder.result("memory", "repeat", (input,), out, input.dtype)


def _tile(recorder: Recorder, op: str, input: Tensor, *dims: Any) -> Tensor:
    times = tuple(dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    times = (1,) * (input.ndim - len(times)) + times
    return _repeat(recorder, op, input, times)


def _repeat_interleave(
    recorder: Recorder,
    op: str,
    input: Tensor,
    repeats: Any = None,
    dim: int | None = None,
    *,
    output_size: int | None = None,
) -> Tensor:
    if dim is None:
        whole = _reshape(recorder, input, (input.numel(),))
        return _repeat_interleave(recorder, op, whole, repeats, 0, output_size=output_size)
    shape = list(input.shape)
    dim %= len(shape)
    if isinstance(repeats, int):
        shape[dim] *= repeats
    elif output_size is not None:
        shape[dim] = output_size
    elif isinstance(repeats, Tensor) and not repeats.is_meta:
        count = int(repeats.sum())
        shape[dim] = count if repeats.numel() > 1 else shape[dim] * count
    else:
        raise NoRule
    return recorder.result("memory", op, (input,), tuple(shape), input.dtype)


def rearrange(
    recorder: Recorder, op: str, input: Tensor, *args: Any, inplace: bool = False, **named: Any
) -> Tensor:
    """Rearrangements that keep shape and dtype."""
    if named.get("out") is not None:
        raise NoRule
    return unary(recorder, "memory", op, input, input.dtype, inplace)


def _fill(recorder: Recorder, op: str, input: Tensor, *args: Any, **named: Any) -> Tensor:
    """Overwriting: nothing is read."""
    recorder.add(
        "memory", op, (), (), (recorder.spec(input),),
        reads=(recorder.written_part(input),), makes=(input,),
    )  # fmt: skip
    return input


def _copy_over(
    recorder: Recorder, op: str, input: Tensor, src: Any, non_blocking: bool = False
) -> Tensor:
    if isinstance(src, Tensor) and broadcast_shapes(input.shape, src.shape) != input.shape:
        raise NoRule
    return recorder.record("memory", op, (src,), input, recorder.written_part(input))


def _pixel_shuffle(recorder: Recorder, op: str, input: Tensor, upscale_factor: int) -> Tensor:
    *lead, channels, height, width = input.shape
    if channels % upscale_factor**2:
        raise NoRule
    shape = (
        *lead, channels // upscale_factor**2, height * upscale_factor, width * upscale_factor,
    )  # fmt: skip
    # The CPU keeps channels_last here, CUDA and the meta kernel do not.
    return recorder.result("memory", op, (input,), shape, input.dtype)


def _pixel_unshuffle(recorder: Recorder, op: str, input: Tensor, downscale_factor: int) -> Tensor:
    *lead, channels, height, width = input.shape
    if height % downscale_factor or width % downscale_factor:
        raise NoRule
    shape = (
        *lead, channels * downscale_factor**2, height // downscale_factor,
        width // downscale_factor,
    )  # fmt: skip
    return recorder.result("memory", op, (input,), shape, input.dtype)


def _unfold(
    recorder: Recorder,
    op: str,
    input: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    """Sliding windows as columns: (N, C x kernel, positions)."""
    shape = tuple(input.shape)
    if len(shape) not in (3, 4):
        raise NoRule
    kernel, dilation = full(kernel_size, 2), full(dilation, 2)
    padding, stride = full(padding, 2), full(stride, 2)
    positions = 1
    for axis in range(2):
        reach = dilation[axis] * (kernel[axis] - 1)
        steps = (shape[axis - 2] + 2 * padding[axis] - reach - 1) // stride[axis] + 1
        if steps <= 0:
            raise NoRule
        positions *= steps
    out = (*shape[:-3], shape[-3] * math.prod(kernel), positions)
    return recorder.result("memory", op, (input,), out, input.dtype)


def _fold(
    recorder: Recorder,
    op: str,
    input: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    kernel = full(kernel_size, 2)
    if input.ndim not in (2, 3) or input.shape[-2] % math.prod(kernel):
        raise NoRule
    shape = (*input.shape[:-2], input.shape[-2] // math.prod(kernel), *full(output_size, 2))
    return recorder.result("memory", op, (input,), shape, input.dtype)


def _one_hot(recorder: Recorder, op: str, tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise NoRule  # the largest value decides
    return recorder.result("memory", op, (tensor,), (*tensor.shape, num_classes), torch.int64)


#: Methods that convert; ``None`` moves and keeps the dtype.
CASTS: Final = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16,
    "bfloat16": torch.bfloat16, "long": torch.int64, "int": torch.int32, "short": torch.int16,
    "char": torch.int8, "byte": torch.uint8, "bool": torch.bool, "cfloat": torch.complex64,
    "cpu": None, "cuda": None, "pin_memory": None,
}  # fmt: skip

RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "hstack": partial(_cat_along, axis=1),
    "vstack": partial(_cat_along, axis=0),
    "stack": _stack,
    "clone": _clone,
    "contiguous": _contiguous,
    "type": _type,
    **dict.fromkeys(("to", "type_as"), _to),
    **{name: partial(_cast_method, target=dtype) for name, dtype in CASTS.items()},
    "reshape": _reshape_to,
    "reshape_as": _reshape_as,
    "flatten": flatten,
    "ravel": _ravel,
    **dict.fromkeys(("pad", "_pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(
        ("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"), _interpolate
    ),
    **dict.fromkeys(("grid_sample", "grid_sampler"), _grid_sample),
    "repeat": _repeat,
    "tile": _tile,
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(
        ("roll", "flip", "fliplr", "flipud", "tril", "triu", "channel_shuffle"), rearrange
    ),
    **dict.fromkeys(
        ("fill_", "zero_", "normal_", "uniform_", "exponential_", "bernoulli_", "random_",
         "log_normal_", "cauchy_", "geometric_"),
        _fill,
    ),
    "copy_": _copy_over,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **dict.fromkeys((torch.nn.functional.unfold, "im2col"), _unfold),
    **dict.fromkeys(("fold", "col2im"), _fold),
    "one_hot": _one_hot,
}  # fmt: skip
