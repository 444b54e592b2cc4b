"""Trace every model of two libraries and hold its MACs against torch's ``FlopCounterMode``.

    python benchmarks/trace_sweep.py [--quick] [--models a,b] [--library pytorchcv]

Models are built on the meta device; ``FlopCounterMode`` runs them there. Where it fails (a model
that reads values, an operation without a meta kernel), the model counts as traced only.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from pytest_neuralpower.tracing import trace

Case = tuple[str, Callable[[], torch.nn.Module], tuple[Any, ...], dict[str, Any]]


def pytorchcv_cases(step: int) -> Iterator[Case]:
    """Image models, every ``step``-th of the registry, at the input size each was made for."""
    from pytorchcv.model_provider import _models, get_model

    for name in sorted(_models)[::step]:
        channels, size = 3, (224, 224)
        if "cifar" in name or "svhn" in name:
            size = (32, 32)
        elif name.startswith("inceptionv3") or "xception" in name:
            size = (299, 299)
        elif any(part in name for part in ("_cityscapes", "_ade20k", "_voc", "_coco", "_lip")):
            size = (480, 480)
        if any(part in name for part in ("jasper", "quartznet", "jasperdr", "lwopenpose")):
            continue  # their inputs are pairs or videos, made by hand below

        def build(name: str = name) -> torch.nn.Module:
            return get_model(name)  # type: ignore[no-any-return]

        yield name, build, (torch.empty(1, channels, *size),), {}


def transformers_cases(step: int) -> Iterator[Case]:
    """Every family with a base model, from a small configuration of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    for name in sorted(CONFIG_MAPPING)[::step]:
        try:
            config_type = CONFIG_MAPPING[name]
            if config_type not in MODEL_MAPPING:
                continue
            model_type = MODEL_MAPPING[config_type]
        except Exception:
            continue
        if isinstance(model_type, tuple):
            model_type = model_type[0]
        try:
            main = getattr(model_type, "main_input_name", "input_ids")
        except ImportError:
            continue  # it needs a library that is not here

        def build(model_type: Any = model_type, config_type: Any = config_type) -> Any:
            return model_type(shrink(config_type()))

        if main == "input_ids" and getattr(config_type(), "is_encoder_decoder", False):
            tokens = torch.full((1, 32), 5)
            yield name, build, (), {"input_ids": tokens, "decoder_input_ids": tokens.clone()}
        elif main == "pixel_values":
            try:
                size = config_type().image_size
            except Exception:
                size = 224
            size = size if isinstance(size, int) else 224
            yield name, build, (), {"pixel_values": torch.empty(1, 3, size, size)}
        elif main == "input_values":
            yield name, build, (), {"input_values": torch.empty(1, 16000)}
        elif main == "input_features":
            yield name, build, (), {"input_features": torch.empty(1, 80, 3000)}
        else:
            yield name, build, (), {"input_ids": torch.full((1, 32), 5)}


def shrink(config: Any) -> Any:
    """Fewer layers: the shapes of one say all."""
    for field in (
        "num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
        "num_layers", "num_decoder_layers",
    ):  # fmt: skip
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 2:
            try:
                setattr(config, field, 2)
            except Exception:
                continue
    return config


def reference_macs(model: torch.nn.Module, args: Any, kwargs: Any) -> int | str:
    """MACs by ``FlopCounterMode`` on meta, or why it has none."""
    given = [arg.to("meta") for arg in args]
    named = {name: value.to("meta") for name, value in kwargs.items()}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(*given, **named)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}".partition("\n")[0][:60]
    return counter.get_total_flops() // 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", help="names, separated by commas")
    parser.add_argument("--library", choices=("pytorchcv", "transformers"))
    parser.add_argument("--quick", action="store_true", help="every tenth model")
    parser.add_argument("--step", type=int, default=None, help="every n-th model")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    step = options.step or (10 if options.quick else 1)
    wanted = set(options.models.split(",")) if options.models else None
    cases: list[Case] = []
    if options.library != "transformers":
        cases += pytorchcv_cases(1 if wanted else step)
    if options.library != "pytorchcv":
        cases += transformers_cases(1 if wanted else step)

    rows = []
    verdicts: Counter[str] = Counter()
    for name, build, args, kwargs in cases:
        if wanted and name not in wanted:
            continue
        row = sweep_one(name, build, args, kwargs)
        verdicts[row[1]] += 1
        told = row[1] in ("DIFFERS", "FAILED") or row[4]
        if (told and row[1] not in ("refused", "not built")) or options.verbose or wanted:
            rows.append(row)
    print(tabulate(rows, ("model", "", "our MACs", "FlopCounterMode", "remarks", "ms")))
    compared = verdicts["equal"] + verdicts["DIFFERS"]
    print(
        f"\n{compared + verdicts['traced']} models traced; {compared} compared, "
        f"{verdicts['equal']} with identical MACs; {verdicts['FAILED']} failed where torch did "
        f"not; {verdicts['refused']} refused these inputs by torch, too; "
        f"{verdicts['not built']} not built"
    )
    return 1 if verdicts["DIFFERS"] or verdicts["FAILED"] else 0


def sweep_one(
    name: str, build: Callable[[], torch.nn.Module], args: Any, kwargs: Any
) -> tuple[str, str, Any, Any, str, str]:
    """Name, verdict, our MACs, the reference or why there is none, remarks, milliseconds."""
    try:
        with torch.device("meta"):
            model = build().eval()
    except Exception as error:
        return name, "not built", "", "", str(error)[:70], ""
    start = time.perf_counter()
    try:
        result = trace(model, *args, **kwargs)
    except Exception as error:
        reference = reference_macs(model, args, kwargs)
        # Inputs that torch refuses, too, were ours to get right, not the tracer's.
        verdict = "FAILED" if isinstance(reference, int) else "refused"
        return name, verdict, "", reference, str(error)[:200], ""
    elapsed = f"{(time.perf_counter() - start) * 1e3:.1f}"
    reference = reference_macs(model, args, kwargs)
    verdict = "traced"
    if isinstance(reference, int):
        verdict = "equal" if reference == result.macs else "DIFFERS"
    remarks = "; ".join((*result.fallbacks, *result.notes))[:200]
    return name, verdict, result.macs, reference, remarks, elapsed


if __name__ == "__main__":
    raise SystemExit(main())
