"""FlexAttention: its kernel takes Python functions and a block mask, and is compiled by torch.

The function's own checks run; where it would compile and call its kernel, one layer is listed.
"""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.tracing.torch_private import (
    FLEX_KERNEL,
    FLEX_MASK,
    FLEX_MODULE,
    FLEX_ORDER,
    FLEX_UNCOMPILED,
    without_torch_function,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder


@contextmanager
def watched_flex_attention(recorder: Recorder, *, compute: bool) -> Iterator[None]:
    """List every call of ``flex_attention``, of one trace at a time."""
    module: Any = sys.modules.get(FLEX_MODULE)
    if module is None:  # nobody can call it
        yield
        return
    replaced = (FLEX_UNCOMPILED, FLEX_KERNEL, FLEX_MASK, FLEX_ORDER)
    before = {name: getattr(module, name) for name in replaced}
    original, make_mask, order = (before[name] for name in replaced[1:])

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, score: Any, blocks: Any, *more: Any
    ) -> Any:
        with without_torch_function():
            result = _list(recorder, query, key, value, blocks)
            if compute:
                result = original(query, key, value, score, blocks, *more)
                recorder.made(*result[:2])
            return result

    def mask(  # noqa: PLR0917 - torch's own arguments
        function: Any, batch: Any, heads: Any, length: int, keys: int, device: Any = None
    ) -> Tensor:
        with without_torch_function():
            made: Tensor = make_mask(function, batch, heads, length, keys, device and "cpu")
            spec = (recorder.spec(made),)
            recorder.add("elementwise", "create_mask", (), (), spec, reads=(), makes=(made,))
        return made

    def ordered(*args: Any) -> Any:
        with without_torch_function():
            return order(*args)

    setattr(module, FLEX_UNCOMPILED, True)
    setattr(module, FLEX_KERNEL, kernel)
    setattr(module, FLEX_MASK, mask)
    setattr(module, FLEX_ORDER, ordered)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _list(
    recorder: Recorder, query: Tensor, key: Tensor, value: Tensor, blocks: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the two statistics of its rows."""
    batch, heads, length, _ = query.shape
    kept = _kept_scores(blocks, batch * heads, length, key.shape[-2])
    dtype = recorder.autocast(query.dtype)
    query, key, value = (recorder.cast(tensor, dtype) for tensor in (query, key, value))
    output = recorder.new((batch, heads, length, value.shape[-1]), dtype)
    most, total = (recorder.new((batch, heads, length), query.dtype) for _ in range(2))
    recorder.note_seen(query, key, value)
    recorder.add(
        "attention", "flex_attention", map(recorder.spec, (query, key, value)), (),
        (recorder.spec(output),), (("kept", kept),),
        reads=(query, key, value, *blocks), makes=(output, most, total),
    )  # fmt: skip
    return output, most, total


def _kept_scores(blocks: Any, matrices: int, length: int, keys: int) -> int:
    """Scores in blocks that the mask keeps, whole or in part; all without the mask's values."""
    *_, block_rows, block_keys, _ = blocks
    partly, wholly = blocks[2], blocks[4]
    counts = partly if wholly is None else partly + wholly
    if counts.is_meta:
        return matrices * length * keys
    masks = math.prod(counts.shape[:-1])
    kept = sum(
        min(block_rows, length - row * block_rows) * min(count * block_keys, keys)
        for of_one_mask in counts.reshape(masks, -1).tolist()
        for row, count in enumerate(of_one_mask)
    )
    return int(kept * matrices // max(masks, 1))
