"""Trace real models of six libraries and hold their MACs against torch's ``FlopCounterMode``.

    python benchmarks/trace_sweep.py [--library timm] [--models a,b] [--step 5] [--verbose]

Needs any of timm (torchvision is not needed), transformers, diffusers, peft, torch_geometric and
pytorchcv. Models are built on the meta device, where ``FlopCounterMode`` runs them, too. Where it
cannot (a model that reads values, an operation without a meta kernel), it counts one real forward
on the CPU: without the fused kernels that it does not see, and with experts called one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from real_models import LIBRARIES, Case
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_neuralpower.tracing import trace
from pytest_neuralpower.tracing.inputs import map_inputs

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

#: Larger models are not built for real.
MOST_PARAMETERS = 250_000_000


def _grouped_flops(rows: Any, matrices: Any, *_: Any, **__: Any) -> int:
    return 2 * rows[0] * matrices[1] * matrices[2]


#: Of operations that ``FlopCounterMode`` has no formula for.
UNCOUNTED = {torch.ops.aten._grouped_mm: _grouped_flops}


def has_no_formula(layer: Layer) -> bool:
    """``FlopCounterMode`` counts products of matrices, convolutions and attention."""
    vector = layer.kind == "matmul" and any(len(spec.shape) == 1 for spec in layer.inputs[:2])
    return layer.op in ("cdist", "sparse_mm") or vector


class Row(NamedTuple):
    """What one model gave."""

    model: str
    verdict: str
    ours: int | str = ""
    reference: int | str = ""
    remarks: str = ""
    time_ms: str = ""

    def __str__(self) -> str:
        figures = f"{self.ours} MACs, FlopCounterMode {self.reference}, {self.time_ms} ms"
        return f"{self.model}: {self.verdict}: {figures}; {self.remarks[:160]}"


def run(case: Case) -> Row:
    """Trace and count one model."""
    try:
        with torch.device("meta"):
            model = case.build().eval()
    except Exception as error:
        return Row(case.name, "not built", remarks=first_line(error))
    start = time.perf_counter()
    try:
        result = trace(model, *case.args, **case.kwargs)
    except Exception as error:
        if "on the meta device; build the model" not in str(error):
            return refusal(case, model, error)
        if too_large(model):
            return Row(case.name, "needs values", remarks=first_line(error))
        try:
            model = case.build().eval()
            case = case._replace(args=real(case.args), kwargs=real(case.kwargs))
            torch.manual_seed(0)  # where its random numbers decide, too
            start = time.perf_counter()
            result = trace(model, *case.args, **case.kwargs)
        except Exception as again:
            return refusal(case, model, again)
    elapsed = f"{(time.perf_counter() - start) * 1e3:.1f}"
    counted, why = reference_macs(case, model, result.macs)
    remarks = [*result.fallbacks, *result.notes]
    if counted is None:
        return Row(case.name, "traced", result.macs, why, "; ".join(remarks), elapsed)
    verdict = "equal" if counted == result.macs else "DIFFERS"
    unseen = [layer for layer in result if has_no_formula(layer)]
    if unseen and counted + sum(layer.macs for layer in unseen) == result.macs:
        verdict = "explained"
        remarks.insert(0, f"it has no formula of {', '.join({layer.op for layer in unseen})}")
    return Row(case.name, verdict, result.macs, counted, "; ".join(filter(None, (why, *remarks))),
               elapsed)  # fmt: skip


def too_large(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMETERS


def refusal(case: Case, model: nn.Module, error: Exception) -> Row:
    """Inputs that torch refuses, too, were ours to get right, not the tracer's."""
    counted, _ = reference_macs(case, model, None)
    verdict = "refused" if counted is None else "FAILED"
    return Row(case.name, verdict, "", "" if counted is None else counted, first_line(error))


def reference_macs(case: Case, model: nn.Module, ours: int | None) -> tuple[int | None, str]:
    """MACs by ``FlopCounterMode``, and where it counted; ``None`` and why it has none.

    A count on meta that differs from ours is checked by a real forward.
    """
    counted = why = None
    if all(parameter.is_meta for parameter in model.parameters()):
        inputs = [map_inputs(each, on_meta) for each in case[2:]]
        counted, why = count(model, *inputs)
        if "BF16" in why:  # experts in one call: its meta kernel takes no other dtype
            counted, why = count(model.to(torch.bfloat16), *inputs)
        if counted is not None and ours in (None, counted):
            return counted, ""
    if too_large(model):
        return counted, f"{why or 'on meta'}; too large to be built"
    built, inputs = model, case[2:]  # their values may decide what runs
    if counted is not None or any(parameter.is_meta for parameter in model.parameters()):
        try:
            built, inputs = case.build().eval(), [real(each) for each in case[2:]]
        except Exception as error:
            return counted, first_line(error)
    if hasattr(built, "set_experts_implementation"):
        with contextlib.suppress(Exception):
            built.set_experts_implementation("eager")
    with without_fused_kernels():
        really, why = count(built, *inputs)
    return (counted, why) if really is None else (really, "counted on the CPU")


@contextlib.contextmanager
def without_fused_kernels() -> Iterator[None]:
    """``FlopCounterMode`` does not see what they compute."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.backends.mkldnn.flags(enabled=False),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def count(model: nn.Module, args: Any, kwargs: Any) -> tuple[int | None, str]:
    model.requires_grad_(False)  # FlopCounterMode fails on some parameters that are given on
    torch.manual_seed(0)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    try:
        with torch.no_grad(), counter:
            model(*args, **kwargs)
    except Exception as error:
        return None, first_line(error)
    return counter.get_total_flops() // 2, ""


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def real(value: Any) -> Any:
    """Inputs with values that suit a real forward."""

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        return torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()

    return map_inputs(value, filled)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    parser.add_argument("--models", help="names, separated by commas")
    parser.add_argument("--step", type=int, help="every n-th model of each library")
    parser.add_argument("--verbose", action="store_true", help="list every model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = set(options.models.split(",")) if options.models else None
    told = ("DIFFERS", "FAILED", "explained")

    failed = False
    table = []
    for library in options.library or LIBRARIES:
        cases, step = LIBRARIES[library]
        verdicts: Counter[str] = Counter()
        try:
            for case in cases(1 if wanted else options.step or step):
                if wanted is None or case.name in wanted:
                    row = run(case)
                    verdicts[row.verdict] += 1
                    failed |= row.verdict in ("DIFFERS", "FAILED")
                    if options.verbose or wanted or row.verdict in told:
                        print(row, flush=True)
        except ImportError as error:
            print(f"{library}: {error}")
            continue
        out = ("needs values", "refused", "not built")
        tried = verdicts.total() - sum(verdicts[one] for one in out)
        compared = ("equal", "explained", "DIFFERS")
        table.append(
            (library, tried, tried - verdicts["FAILED"], sum(verdicts[one] for one in compared),
             *(verdicts[one] for one in (*compared, *out)))
        )  # fmt: skip
    table.append(("all", *(sum(column) for column in list(zip(*table, strict=True))[1:])))
    headers = ("library", "models", "traced", "compared", "identical", "explained", "DIFFERS",
               "needs values, too large", "refused by torch, too", "not built")  # fmt: skip
    print(f"\n{tabulate(table, headers)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
