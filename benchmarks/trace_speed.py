"""Tracing time and MACs of real models beside the tools people use for that, in one run.

    python benchmarks/trace_speed.py [--models resnet50,bert] [--quick]

Fair to each peer: models are built on the meta device, and a peer that works there runs there (its
fastest way: nothing is computed); one that does not gets real weights on the CPU and is marked
with ``*``. Every time is the median of several calls after one to warm up, building the model not
counted. A peer that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import io
import itertools
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tabulate import tabulate

from pytest_neuralpower.tracing import trace

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Trace

IMAGE_MODELS = (
    "alexnet", "vgg16", "bn_vgg16", "resnet18", "resnet50", "resnet101", "preresnet50",
    "resnext50_32x4d", "seresnet50", "wrn50_2", "densenet121", "squeezenet_v1_1", "mobilenet_w1",
    "mobilenetv2_w1", "mobilenetv3_large_w1", "efficientnet_b0", "shufflenetv2_w1", "mnasnet_b1",
    "ghostnet", "inceptionv3", "darknet53", "hrnet_w18_small_v1", "dla34", "vovnet27s",
    "nin_cifar10", "resnet20_cifar10",
)  # fmt: skip

#: Name, class and configuration; the sizes are the published ones.
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", {}),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {}),
    "electra": ("ElectraModel", "ElectraConfig", {}),
    "albert": ("AlbertModel", "AlbertConfig", {"hidden_size": 768, "num_attention_heads": 12}),
    "gpt2": ("GPT2Model", "GPT2Config", {"use_cache": False}),
    "llama-7b": ("LlamaModel", "LlamaConfig", {"use_cache": False}),
    "qwen2-0.5b": (
        "Qwen2Model",
        "Qwen2Config",
        {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "use_cache": False,
        },
    ),
    "t5-small": ("T5Model", "T5Config", {"use_cache": False}),
    "vit-b16": ("ViTModel", "ViTConfig", {}),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "swin-tiny": ("SwinModel", "SwinConfig", {}),
    "convnext-tiny": ("ConvNextModel", "ConvNextConfig", {}),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model, built on a device, and its example inputs by keyword or position."""

    name: str
    build: Callable[[], torch.nn.Module]
    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]

    def on(self, device: str) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
        with torch.device(device):
            model = self.build().eval()
        return (
            model,
            tuple(value.to(device) for value in self.args),
            {name: value.to(device) for name, value in self.kwargs.items()},
        )


def all_cases() -> list[Case]:
    cases = []
    for name in IMAGE_MODELS:

        def build_image(name: str = name) -> torch.nn.Module:
            from pytorchcv.model_provider import get_model

            return get_model(name)  # type: ignore[no-any-return]

        size = 32 if "cifar" in name else 299 if name == "inceptionv3" else 224
        cases.append(Case(name, build_image, (torch.randn(1, 3, size, size),), {}))
    for name, (model_name, config_name, options) in TRANSFORMERS.items():

        def build_transformer(
            model_name: str = model_name, config_name: str = config_name, options: Any = options
        ) -> torch.nn.Module:
            import transformers

            config = getattr(transformers, config_name)(**options)
            return getattr(transformers, model_name)(config)  # type: ignore[no-any-return]

        if name in ("vit-b16", "deit", "swin-tiny", "convnext-tiny"):
            cases.append(
                Case(name, build_transformer, (), {"pixel_values": torch.randn(1, 3, 224, 224)})
            )
            continue
        inputs = {"input_ids": torch.full((1, 128), 5)}
        if name == "t5-small":
            inputs["decoder_input_ids"] = torch.full((1, 128), 5)
        cases.append(Case(name, build_transformer, (), inputs))
    return cases


# --- the peers: each returns its MACs for one call ---------------------------------------------


def by_fvcore(model: torch.nn.Module, args: Any, kwargs: Any) -> int:
    from fvcore.nn import FlopCountAnalysis

    # It calls by position only; the kwargs of these models are their first parameters in order,
    # but for T5, whose second is the mask.
    inputs = (*args, *kwargs.values())
    if "decoder_input_ids" in kwargs:
        inputs = (kwargs["input_ids"], None, kwargs["decoder_input_ids"])
    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())


def by_ptflops(model: torch.nn.Module, args: Any, kwargs: Any) -> int:
    from ptflops import get_model_complexity_info

    given: Any = kwargs or args[0]
    macs, _ = get_model_complexity_info(
        model, (1,), as_strings=False, print_per_layer_stat=False, verbose=False,
        input_constructor=lambda _: given, backend="pytorch", ost=io.StringIO(),
    )  # fmt: skip
    if macs is None:
        raise RuntimeError("ptflops failed")
    return int(macs)


def by_torchinfo(model: torch.nn.Module, args: Any, kwargs: Any) -> int:
    from torchinfo import summary

    device = next(model.parameters()).device
    given: Any = kwargs or args
    return int(summary(model, input_data=given, verbose=0, device=device).total_mult_adds)


def by_calflops(model: torch.nn.Module, args: Any, kwargs: Any) -> int:
    from calflops import calculate_flops

    given = {"kwargs": kwargs} if kwargs else {"args": list(args)}
    _, macs, _ = calculate_flops(
        model, print_results=False, print_detailed=False, output_as_string=False, **given
    )
    return int(macs)


def by_torch(model: torch.nn.Module, args: Any, kwargs: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        model(*args, **kwargs)
    return counter.get_total_flops() // 2


PEERS: dict[str, Callable[..., int]] = {
    "fvcore": by_fvcore,
    "ptflops": by_ptflops,
    "torchinfo": by_torchinfo,
    "calflops": by_calflops,
    "FlopCounterMode": by_torch,
}


@dataclass
class Measured:
    """One tool on one model."""

    time_ms: float
    macs: int
    device: str = "meta"


@dataclass
class Row:
    name: str
    ours: Measured
    peers: dict[str, Measured] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        return {name: peer.time_ms / self.ours.time_ms for name, peer in self.peers.items()}


def timed(call: Callable[[], Any], times: int) -> tuple[list[float], Any]:
    """Milliseconds of several calls after one to warm up, and the last result."""
    result = call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        taken.append((time.perf_counter() - start) * 1e3)
    return taken, result


@contextlib.contextmanager
def torch_restored() -> Iterator[None]:
    """Undo what a peer leaves patched in torch when it fails."""
    places = (torch, torch.Tensor, torch.nn.functional, torch.nn.Module)
    before = [dict(vars(place)) for place in places]
    try:
        yield
    finally:
        for place, names in zip(places, before, strict=True):
            for name, value in names.items():
                if vars(place).get(name) is not value:
                    setattr(place, name, value)


def measure_peer(case: Case, peer: Callable[..., int], times: int) -> Measured | str:
    """On meta where that works, else with real weights on the CPU."""
    problem = ""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in case.build().parameters())
    # Real weights beyond this would not fit everywhere.
    for device in ("meta", "cpu") if size < 3e8 else ("meta",):
        try:
            with torch_restored(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                model, args, kwargs = case.on(device)
                peer(copy.copy(model), args, kwargs)
                taken, macs = timed(lambda: peer(model, args, kwargs), times)  # noqa: B023
            return Measured(statistics.median(taken), macs, device)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            problem = f"{type(error).__name__}: {error}".partition("\n")[0][:80]
    return problem


def explain(result: Trace, theirs: int) -> str:
    """Why another count differs from ours, by the layers that make up the difference.

    Tries the ways in which counters are known to err: a kind left out or counted twice, a linear
    layer counted once per sample and not once per token, biases and cheap layers added.
    """
    if theirs == result.macs:
        return ""
    kinds = {
        kind: sum(layer.macs for layer in result if layer.kind == kind)
        for kind in ("conv", "linear", "attention", "matmul", "rnn")
    }
    kinds = {kind: macs for kind, macs in kinds.items() if macs}
    once = sum(math.prod(layer.weights[0].shape) for layer in result if layer.kind == "linear")
    products = [layer for layer in result if layer.kind in ("conv", "linear")]
    biases = sum(layer.outputs[0].numel for layer in products if len(layer.weights) > 1)
    cheap = sum(
        layer.outputs[0].numel
        for layer in result
        if layer.kind in ("norm", "activation", "pool", "softmax", "elementwise", "reduction")
    )
    # torchinfo multiplies every parameter once, tables included.
    tables = sum(layer.weights[0].numel for layer in result if layer.kind == "embedding")
    choices = []
    for kind, macs in kinds.items():
        ways = [(macs, ""), (0, f"without {kind}"), (2 * macs, f"{kind} twice")]
        if kind == "linear":
            ways.append((once * result.batch, "linear once per sample, not per token"))
        choices.append(ways)
    candidates = []
    for chosen in itertools.product(*choices):
        base = sum(macs for macs, _ in chosen)
        words = [word for _, word in chosen if word]
        if base == theirs:
            return ", ".join(words)
        if biases and base + biases == theirs:
            return ", ".join([*words, "with biases"])
        if base and base < theirs <= base + biases + 6 * cheap:
            candidates.append((len(words), theirs - base, words))
        elif base and tables and base + tables < theirs <= base + tables + biases + 6 * cheap:
            candidates.append((len(words) + 1, theirs - base, [*words, "whole tables"]))
    if candidates:
        _, extra, words = min(candidates)
        share = extra / theirs
        return ", ".join([*words, f"with norms, activations, pooling or biases ({share:.2%})"])
    return f"{theirs / result.macs:.3f} of ours, by no combination of kinds"


def measure(case: Case, peers: dict[str, Callable[..., int]], times: int) -> Row:
    with torch.device("meta"):
        model = case.build().eval()
    # Before, between and after the peers: a slow spell of the machine is then not theirs alone.
    taken, result = timed(lambda: trace(model, *case.args, **case.kwargs), times)
    row = Row(case.name, Measured(0.0, result.macs))
    for name, peer in peers.items():
        found = measure_peer(case, peer, times)
        taken += timed(lambda: trace(model, *case.args, **case.kwargs), times)[0]
        if isinstance(found, str):
            row.remarks.append(f"{name} fails ({found})")
            continue
        row.peers[name] = found
        why = explain(result, found.macs)
        if why:
            row.remarks.append(f"{name}: {why}")
    row.ours.time_ms = statistics.median(taken)
    return row


def report(rows: list[Row], peers: list[str]) -> None:
    table: list[list[Any]] = []
    for row in rows:
        line: list[Any] = [row.name, f"{row.ours.time_ms:.2f}"]
        for name in peers:
            peer = row.peers.get(name)
            if peer is None:
                line.append("fails")
                continue
            mark = "*" if peer.device == "cpu" else ""
            line.append(f"{peer.time_ms:.0f}{mark} ({peer.time_ms / row.ours.time_ms:.0f}x)")
        ratios = row.ratios()
        line.append(f"{min(ratios.values()):.1f}x" if ratios else "")
        table.append(line)
    print("Milliseconds (and times ours); * = real weights on the CPU, meta did not work\n")
    print(tabulate(table, ["model", "ours", *peers, "slowest gain"]))

    counts: list[list[Any]] = []
    for row in rows:
        line = [row.name, f"{row.ours.macs / 1e6:,.1f}"]
        for name in peers:
            peer = row.peers.get(name)
            if peer is None:
                line.append("")
            else:
                same = peer.macs == row.ours.macs
                line.append("same" if same else f"{peer.macs / row.ours.macs:.3f}x")
        line.append("; ".join(row.remarks))
        counts.append(line)
    print("\nMega-MACs of ours, the peers' as a multiple, and why they differ\n")
    print(tabulate(counts, ["model", "ours", *peers, "differences"]))

    print("\nSummary")
    median = statistics.median(row.ours.time_ms for row in rows)
    print(f"  ours: median {median:.2f} ms over {len(rows)} models")
    for name in peers:
        ratios = [row.ratios()[name] for row in rows if name in row.peers]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            same = sum(row.peers[name].macs == row.ours.macs for row in rows if name in row.peers)
            print(
                f"  {name}: min {min(ratios):.1f}x, geometric mean {mean:.1f}x, "
                f"median {statistics.median(ratios):.1f}x, on {len(ratios)} models, "
                f"{same} with identical MACs"
            )
    fastest = {row.name: min(row.ratios().values()) for row in rows if row.peers}
    if fastest:
        slow = min(fastest, key=lambda name: fastest[name])
        mean = math.exp(statistics.fmean(map(math.log, fastest.values())))
        print(
            f"  against the fastest peer of each model: min {fastest[slow]:.1f}x ({slow}), "
            f"geometric mean {mean:.1f}x, median {statistics.median(fastest.values()):.1f}x"
        )
    if "resnet50" in fastest:
        ours = next(row.ours.time_ms for row in rows if row.name == "resnet50")
        print(f"  ResNet-50: {ours:.2f} ms, {fastest['resnet50']:.1f}x the fastest peer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", help="names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="six models, fewer repetitions")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    importlib.import_module("torch._dynamo")  # some peers import it while torch is patched
    cases = all_cases()
    if options.models:
        wanted = options.models.split(",")
        cases = [case for case in cases if case.name in wanted]
    elif options.quick:
        quick = ("resnet50", "mobilenetv2_w1", "alexnet", "bert", "gpt2", "vit-b16")
        cases = [case for case in cases if case.name in quick]
    peers = {}
    for name, peer in PEERS.items():
        if name == "FlopCounterMode" or importlib.util.find_spec(name) is not None:
            peers[name] = peer
        else:
            print(f"{name} is not installed: skipped (pip install {name})")
    rows = []
    for case in cases:
        rows.append(measure(case, peers, 2 if options.quick else 3))
        print(f"  {case.name} done", flush=True)
    report(rows, list(peers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
