"""Real models of six libraries, each with example inputs: what ``trace_sweep.py`` traces.

Models are built from configurations, on whatever device is the default then; nothing is downloaded.
Libraries that are not installed have no cases.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn


class Case(NamedTuple):
    """One model and how it is called."""

    name: str
    build: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - read only


# -- timm, which imports names of torchvision that its models do not need.


class _AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for torchvision: every module and every class that is asked for."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _AnyName(name, (), {})

        vars(module)["__getattr__"] = attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None: ...


def import_timm() -> Any:
    """timm, with a stub in the place of torchvision while it is imported."""
    stub = _Stub()
    missing = importlib.util.find_spec("torchvision") is None
    if missing:
        sys.meta_path.append(stub)
    import timm

    if missing:  # others do without
        sys.meta_path.remove(stub)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return timm


def timm_cases(step: int) -> Iterator[Case]:
    """At least one model of every architecture's file, at the size it was made for."""
    timm = import_timm()
    names = sorted(timm.list_models())
    if step > 1:  # at least one of each architecture
        first = {module: timm.list_models(module=module) for module in timm.list_modules()}
        names = sorted({*names[::step], *(models[0] for models in first.values() if models)})
    for name in names:
        size = timm.models.get_pretrained_cfg(name)
        shape = size.input_size if size is not None else (3, 224, 224)
        yield Case(name, partial(timm.create_model, name), (torch.empty(1, *shape),))


# -- pytorchcv.


def pytorchcv_cases(step: int) -> Iterator[Case]:
    """Image models, every ``step``-th of the registry, at the input size each was made for."""
    from pytorchcv.model_provider import _models, get_model

    for name in sorted(_models)[::step]:
        size = (224, 224)
        if "cifar" in name or "svhn" in name:
            size = (32, 32)
        elif name.startswith("inceptionv3") or "xception" in name:
            size = (299, 299)
        elif any(part in name for part in ("_cityscapes", "_ade20k", "_voc", "_coco", "_lip")):
            size = (480, 480)
        if any(part in name for part in ("jasper", "quartznet", "lwopenpose")):
            continue  # their inputs are pairs or videos
        yield Case(name, partial(get_model, name), (torch.empty(1, 3, *size),))


# -- transformers.


def transformers_cases(step: int) -> Iterator[Case]:
    """Every family with a base model, from a small configuration of its own."""
    import transformers

    with contextlib.suppress(ImportError):
        import_timm()  # the backbone of some
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    transformers.logging.set_verbosity_error()
    for name in sorted(CONFIG_MAPPING)[::step]:
        try:
            config_type = CONFIG_MAPPING[name]
            if config_type not in MODEL_MAPPING:
                continue
            model_type = MODEL_MAPPING[config_type]
            if isinstance(model_type, tuple):
                model_type = model_type[0]
            main = getattr(model_type, "main_input_name", "input_ids")
            config = config_type()
        except Exception:
            continue  # it needs a library that is not here, or has no default configuration

        def build(
            name: str = name, model_type: Any = model_type, config_type: Any = config_type
        ) -> Any:
            config = config_type(**_SMALLER.get(name, {}))
            return model_type(config if name in _HYBRIDS else shrink(config))

        parameters = inspect.signature(model_type.forward).parameters.values()
        needed = [one.name for one in parameters if one.default is one.empty]
        yield Case(name, build, (), _transformers_inputs(name, main, needed, config))


#: Images beside tokens.
_IMAGE_AND_TEXT = frozenset(
    ("aimv2", "align", "altclip", "blip", "blip-2", "chinese_clip", "clip", "clipseg", "groupvit",
     "metaclip_2", "owlv2", "owlvit", "siglip", "vilt", "vision-text-dual-encoder")
)  # fmt: skip
_VIDEO = frozenset(("timesformer", "videomae", "vivit"))
#: Spectra with time before frequency, and sounds with a channel.
_TIME_FIRST = frozenset(
    ("audio-spectrogram-transformer", "canary", "cohere_asr", "gemma4_audio", "granite_speech5_ctc",
     "granite_speech5_encoder", "lasr_ctc", "lasr_encoder", "nemotron3_5_asr",
     "nemotron_asr_streaming", "nemotron_asr_streaming_encoder", "parakeet_ctc", "parakeet_encoder",
     "parakeet_rnnt", "parakeet_tdt", "speech_to_text", "univnet", "wav2vec2-bert")
)  # fmt: skip
_WITH_CHANNEL = frozenset(
    ("dac", "encodec", "mimi", "mimi_encoder", "omniasr_audio", "omniasr_ctc",
     "pocket_tts_audio_tokenizer", "pocket_tts_audio_tokenizer_encoder", "xcodec",
     "vibevoice_acoustic_tokenizer")
)  # fmt: skip


def _transformers_inputs(name: str, main: str, needed: list[str], config: Any) -> dict[str, Any]:
    tokens = torch.full((1, 32), 5)
    vision = getattr(config, "vision_config", config)

    def option(*names: str, otherwise: int) -> int:
        values = (getattr(of, one, None) for of in (config, vision) for one in names)
        return next((value for value in values if isinstance(value, int)), otherwise)

    size = option("image_size", "img_size", otherwise=224)
    image = (option("num_channels", otherwise=3), size, size)
    mels = option("num_mel_bins", "feature_size", "mel_bins", "n_mels", otherwise=80)
    if "grid_thw" in needed:
        depth, patch = (
            option("temporal_patch_size", otherwise=1),
            option("patch_size", otherwise=14),
        )
        channels = option("in_channels", "num_channels", "in_chans", otherwise=3)
        given = next(one for one in needed if one in ("hidden_states", "pixel_values"))
        patches = torch.empty(64, channels * depth * patch**2)
        return {given: patches, "grid_thw": torch.tensor([[1, 8, 8]])}
    if name in _VIDEO:
        return {"pixel_values": torch.empty(1, option("num_frames", otherwise=8), *image)}
    if name in _WITH_CHANNEL:
        return {"input_values": torch.empty(1, 1, 16000)}
    if name in _TIME_FIRST:
        length = option("max_length", otherwise=1000) if name.startswith("audio-") else 1000
        key = "input_values" if name.startswith("audio-") else "input_features"
        inputs: dict[str, Any] = {key: torch.empty(1, length, mels)}
    elif main == "pixel_values" and name not in _IMAGE_AND_TEXT:
        return {"pixel_values": torch.empty(1, *image)}
    elif main == "input_values":
        inputs = {"input_values": torch.empty(1, 16000)}
    elif main == "input_features":
        inputs = {"input_features": torch.empty(1, mels, 3000)}
    elif main == "past_values":
        length = option("context_length", otherwise=32)
        return {"past_values": torch.empty(1, length, option("num_input_channels", otherwise=1))}
    else:
        inputs = {"input_ids": tokens}
        if name in _IMAGE_AND_TEXT:
            inputs["pixel_values"] = torch.empty(1, *image)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens.clone()
    return inputs


#: Their first layers are all of one kind, without the attention that their caches ask for.
_HYBRIDS = frozenset(
    ("bailing_hybrid", "bamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm3", "olmo_hybrid",
     "glm5_next_text", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text",
     "recurrent_gemma", "zamba", "zamba2", "gemma4_text", "gemma4_unified_text", "xlstm")
)  # fmt: skip


#: These read values, so that they must be built for real.
_SMALLER: dict[str, dict[str, Any]] = {
    "jetmoe": {"hidden_size": 256, "kv_channels": 32, "num_key_value_heads": 4,
               "intermediate_size": 512, "num_attention_heads": 8},
    "longcat_flash": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4,
                      "ffn_hidden_size": 512, "n_routed_experts": 8, "zero_expert_num": 4,
                      "moe_topk": 2, "vocab_size": 1000, "expert_ffn_hidden_size": 128},
    "openai_privacy_filter": {"num_local_experts": 8, "vocab_size": 1000, "pad_token_id": 0,
                              "eos_token_id": 0},
    "glm5_next_text": {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512,
                       "moe_intermediate_size": 64, "n_routed_experts": 8, "vocab_size": 1000,
                       "pad_token_id": 0},
}  # fmt: skip


def shrink(config: Any, layers: int = 2) -> Any:
    """Fewer layers: the shapes of one say all."""
    for field in (
        "num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
        "num_layers", "num_decoder_layers",
    ):  # fmt: skip
        value = getattr(config, field, None)
        if isinstance(value, int) and value > layers:
            try:
                setattr(config, field, layers)
            except Exception:
                continue
    return config


# -- diffusers: default configurations, but few layers.


def diffusers_cases(step: int) -> Iterator[Case]:
    """Denoisers and autoencoders of images, videos and sound."""
    import diffusers

    yield from list(_diffusers(diffusers.models))[::step]


def _diffusers(models: Any) -> Iterator[Case]:  # noqa: PLR0915 - a list
    def case(_name: str, _config: dict[str, Any], *args: Any, **kwargs: Any) -> Case:
        return Case(_name, partial(getattr(models, _name), **_config), args, kwargs)

    def text(length: int, width: int) -> torch.Tensor:
        return torch.empty(1, length, width)

    time = torch.tensor([10])
    latent = torch.empty(1, 4, 32, 32)
    image = torch.empty(1, 3, 64, 64)
    latent16 = torch.empty(1, 16, 32, 32)
    video = torch.empty(1, 3, 9, 64, 64)
    ones = torch.ones(1, 20, dtype=torch.int64)
    mask = torch.ones(1, 20, dtype=torch.bool)
    grid = torch.zeros(64, 3)
    few = {"num_layers": 2}
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = {"down_block_types": down, "up_block_types": up,
           "block_out_channels": (128, 256, 512, 512)}  # fmt: skip

    yield case("UNet2DModel", {}, torch.empty(1, 3, 64, 64), time)
    yield case("UNet2DConditionModel", {}, latent, time, text(77, 1280))
    yield case("ControlNetModel", {}, latent, time, text(77, 1280), torch.empty(1, 3, 256, 256))
    yield case("UNet1DModel", {"extra_in_channels": 64}, torch.empty(1, 2, 1024), time)
    yield case("UNet3DConditionModel", {}, torch.empty(1, 4, 4, 32, 32), time, text(77, 1024))
    yield case("UNetMotionModel", {}, torch.empty(1, 4, 4, 32, 32), time,
               torch.empty(4, 77, 1280))  # fmt: skip
    yield case("UNetSpatioTemporalConditionModel", {},
               torch.empty(1, 2, 8, 32, 32), time, text(1, 1024),
               added_time_ids=torch.zeros(1, 3))  # fmt: skip
    yield case("Kandinsky3UNet", {}, latent, time, encoder_hidden_states=text(20, 4096),
               encoder_attention_mask=mask)  # fmt: skip
    yield case("StableCascadeUNet", {"down_num_layers_per_block": (2, 2),
                                     "up_num_layers_per_block": (2, 2)},
               torch.empty(1, 16, 24, 24), torch.empty(1), text(1, 1280))  # fmt: skip
    yield case("AutoencoderKL", vae, image)
    yield case("AsymmetricAutoencoderKL", {}, image, mask=torch.empty(1, 1, 64, 64))
    yield case("AutoencoderTiny", {}, image)
    yield case("VQModel", {}, image)
    yield case("AutoencoderDC", {}, image)
    yield case("AutoencoderOobleck", {}, torch.empty(1, 2, 4096))
    yield case("AutoencoderKLCogVideoX", {}, video)
    yield case("AutoencoderKLLTXVideo", {}, video)
    yield case("AutoencoderKLWan", {}, video)
    yield case("AutoencoderKLTemporalDecoder", {}, torch.empty(2, 3, 64, 64), num_frames=2)
    yield case("T2IAdapter", {}, torch.empty(1, 3, 256, 256))
    yield case("DiTTransformer2DModel", few, latent, time, torch.tensor([3]))
    yield case("PixArtTransformer2DModel",
               {**few, "caption_channels": 4096, "sample_size": 32, "use_additional_conditions":
                False}, latent, text(20, 4096), time,
               {"resolution": None, "aspect_ratio": None})  # fmt: skip
    yield case("SD3Transformer2DModel", few, latent16, text(20, 4096), torch.empty(1, 2048), time)
    yield case("FluxTransformer2DModel", {**few, "num_single_layers": 2},
               torch.empty(1, 64, 64), text(20, 4096), torch.empty(1, 768), time, grid,
               torch.zeros(20, 3))  # fmt: skip
    yield case("ChromaTransformer2DModel", {**few, "num_single_layers": 2},
               torch.empty(1, 64, 64), text(20, 4096), time, grid, torch.zeros(20, 3))  # fmt: skip
    yield case("AuraFlowTransformer2DModel",
               {"num_mmdit_layers": 2, "num_single_dit_layers": 2}, latent, text(20, 2048),
               time)  # fmt: skip
    yield case("CogVideoXTransformer3DModel", few, torch.empty(1, 13, 16, 60, 90),
               text(226, 4096), time)  # fmt: skip
    yield case("CogView3PlusTransformer2DModel", few, latent16, text(20, 4096), time,
               *(torch.tensor([[256, 256]]) for _ in range(3)))  # fmt: skip
    yield case("Lumina2Transformer2DModel", few, latent16, time, text(20, 1024), mask)
    yield case("LTXVideoTransformer3DModel", few, torch.empty(1, 64, 128), text(20, 4096), time,
               ones, num_frames=4, height=4, width=4)  # fmt: skip
    yield case("MochiTransformer3DModel", few, torch.empty(1, 12, 2, 16, 16), text(20, 4096), time,
               mask)  # fmt: skip
    yield case("SanaTransformer2DModel", few, torch.empty(1, 32, 32, 32), text(20, 2304), time)
    yield case("StableAudioDiTModel", few, torch.empty(1, 64, 128), time, text(20, 768),
               torch.empty(1, 1, 1536), (torch.zeros(129, 32), torch.zeros(129, 32)))  # fmt: skip
    yield case("WanTransformer3DModel", few, torch.empty(1, 16, 2, 32, 32), time, text(20, 4096))
    yield case("HunyuanVideoTransformer3DModel", {**few, "num_single_layers": 2},
               torch.empty(1, 16, 2, 32, 32), time, text(20, 4096), ones, torch.empty(1, 768),
               torch.empty(1))  # fmt: skip
    yield case("HunyuanDiT2DModel",
               {**few, "in_channels": 4, "patch_size": 2, "hidden_size": 1408}, latent, time,
               text(77, 1024), torch.ones(1, 77), text(256, 2048), torch.ones(1, 256),
               torch.ones(1, 6), torch.tensor([0]),
               (torch.zeros(256, 88), torch.zeros(256, 88)))  # fmt: skip
    yield case("AllegroTransformer3DModel", {**few, "interpolation_scale_t": 1.0},
               torch.empty(1, 4, 2, 16, 16), text(20, 4096), time,
               attention_mask=torch.ones(1, 2, 16, 16), encoder_attention_mask=torch.ones(1, 20),
               image_rotary_emb=None)  # fmt: skip
    yield case("QwenImageTransformer2DModel", few, torch.empty(1, 64, 64), text(20, 3584), ones,
               time, [[(1, 8, 8)]])  # fmt: skip
    yield case("PriorTransformer", few, torch.empty(1, 768), time, torch.empty(1, 768),
               text(77, 768))  # fmt: skip
    yield case("UVit2DModel", {"num_hidden_layers": 2}, torch.zeros(1, 16, 16, dtype=torch.int64),
               text(77, 768), torch.empty(1, 768), torch.zeros(1, 5))  # fmt: skip


# -- PEFT: adapters on small language models.


def peft_cases(step: int) -> Iterator[Case]:
    """Each kind of adapter on a small Llama, some on BERT, convolutions and embeddings."""
    import peft
    import transformers

    small = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
             "num_attention_heads": 4, "vocab_size": 1000}  # fmt: skip

    def llama() -> Any:
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**small, num_key_value_heads=2)
        )

    def bert() -> Any:
        return transformers.BertForSequenceClassification(transformers.BertConfig(**small))

    def mamba() -> Any:
        config = transformers.MambaConfig(hidden_size=256, num_hidden_layers=2, vocab_size=1000)
        return transformers.MambaForCausalLM(config)

    def vit() -> Any:
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(**{**small, "vocab_size": 2})
        )

    def convnext() -> Any:
        return transformers.ConvNextForImageClassification(transformers.ConvNextConfig())

    def wrapped(base: Callable[[], Any], config: Any, merge: bool = False) -> Any:
        model = peft.get_peft_model(base(), config)
        if merge:
            model.merge_adapter()
        return model

    tokens = {"input_ids": torch.full((2, 32), 5)}
    image = {"pixel_values": torch.empty(1, 3, 224, 224)}
    linear = ["q_proj", "v_proj", "down_proj"]
    lora = partial(peft.LoraConfig, r=8)
    on_llama: dict[str, Any] = {
        "LoRA": partial(lora, target_modules=linear),
        "LoRA all-linear": partial(lora, target_modules="all-linear"),
        "LoRA rank-stabilised": partial(lora, target_modules=linear, use_rslora=True),
        "LoRA embedding": partial(lora, target_modules=["embed_tokens", "q_proj"]),
        "LoRA bias": partial(lora, target_modules=linear, lora_bias=True),
        "DoRA": partial(lora, target_modules=linear, use_dora=True),
        "IA3": partial(peft.IA3Config, target_modules=linear, feedforward_modules=["down_proj"]),
        "AdaLoRA": partial(peft.AdaLoraConfig, target_modules=linear, total_step=10),
        "LoHa": partial(peft.LoHaConfig, r=8, target_modules=linear),
        "LoKr": partial(peft.LoKrConfig, r=8, target_modules=linear),
        "OFT": partial(peft.OFTConfig, target_modules=linear),
        "BOFT": partial(peft.BOFTConfig, target_modules=["q_proj"], boft_block_size=4),
        "VeRA": partial(peft.VeraConfig, r=8, target_modules=["q_proj"]),
        "FourierFT": partial(peft.FourierFTConfig, n_frequency=10, target_modules=["q_proj"]),
        "HRA": partial(peft.HRAConfig, r=8, target_modules=linear),
        "Bone": partial(getattr(peft, "BoneConfig", peft.HRAConfig), r=8, target_modules=linear),
        "LN tuning": partial(peft.LNTuningConfig, target_modules=["input_layernorm"]),
        "VB-LoRA": partial(peft.VBLoRAConfig, r=8, target_modules=["q_proj"], vector_length=64),
        "prompt tuning": partial(peft.PromptTuningConfig, task_type="CAUSAL_LM",
                                 num_virtual_tokens=8),
        "prefix tuning": partial(peft.PrefixTuningConfig, task_type="CAUSAL_LM",
                                 num_virtual_tokens=8),
        "P-tuning": partial(peft.PromptEncoderConfig, task_type="CAUSAL_LM",
                            num_virtual_tokens=8, encoder_hidden_size=64),
        "adaption prompt": partial(peft.AdaptionPromptConfig, task_type="CAUSAL_LM",
                                   adapter_len=4, adapter_layers=2),
    }  # fmt: skip
    cases = [
        Case(f"Llama + {name}", lambda make=make: wrapped(llama, make()), (), tokens)
        for name, make in on_llama.items()
    ]
    attention = ["query", "value"]
    cases += [
        Case("Llama + LoRA, merged", lambda: wrapped(llama, on_llama["LoRA"](), True), (), tokens),
        Case("BERT + LoRA", lambda: wrapped(bert, lora(target_modules=attention)), (), tokens),
        Case("BERT + LoRA for classes",
             lambda: wrapped(bert, lora(target_modules=attention, task_type="SEQ_CLS")), (),
             tokens),
        Case("Mamba + LoRA", lambda: wrapped(mamba, lora(target_modules=["in_proj", "x_proj"])),
             (), tokens),
        Case("ViT + LoRA", lambda: wrapped(vit, lora(target_modules="all-linear")), (), image),
        Case("ConvNeXt + LoRA", lambda: wrapped(convnext, lora(target_modules=["pwconv1",
             "patch_embeddings"])), (), image),
        Case("ConvNeXt + DoRA", lambda: wrapped(convnext, lora(target_modules=["pwconv1",
             "patch_embeddings"], use_dora=True)), (), image),
    ]  # fmt: skip
    yield from cases[::step]


# -- PyTorch Geometric, in pure Python.


def pyg_cases(step: int) -> Iterator[Case]:
    """Convolutions on one graph, whole networks and pooling."""
    yield from list(_pyg())[::step]


def _pyg() -> Iterator[Case]:  # noqa: PLR0915 - a list
    import torch_geometric.nn as geometric
    from torch_geometric.data import Batch, Data

    generator = torch.Generator().manual_seed(0)
    nodes, edges = 100, 400
    graph = torch.randint(0, nodes, (2, edges), generator=generator)
    features, positions = torch.empty(nodes, 16), torch.rand(nodes, 3, generator=generator)
    kinds = torch.randint(0, 4, (edges,), generator=generator)
    per_edge = torch.empty(edges, 8)
    batch = torch.arange(nodes) // 25

    def conv(name: str, *args: Any, given: tuple[Any, ...] = (features, graph), **kw: Any) -> Case:
        return Case(name, lambda: getattr(geometric, name)(*args, **kw), given)

    for name in ("GCNConv", "SAGEConv", "GraphConv", "ResGatedGraphConv", "TAGConv", "ARMAConv",
                 "SGConv", "LEConv", "MFConv", "ClusterGCNConv", "GENConv", "GATConv", "GATv2Conv",
                 "TransformerConv", "SuperGATConv", "FeaStConv", "FiLMConv", "GeneralConv",
                 "MixHopConv"):  # fmt: skip
        yield conv(name, 16, 32)
    yield Case("GATConv of four heads", lambda: geometric.GATConv(16, 8, heads=4),
               (features, graph))  # fmt: skip
    yield conv("ChebConv", 16, 32, 3)
    yield conv("GatedGraphConv", 32, 2)
    yield conv("SSGConv", 16, 32, 0.1)
    yield conv("EGConv", 16, 32)
    yield conv("PANConv", 16, 32, 2)
    yield conv("AGNNConv")
    yield conv("APPNP", 4, 0.1)
    yield conv("LGConv")
    yield conv("SimpleConv")
    yield conv("AntiSymmetricConv", 16)
    yield conv("GCN2Conv", 16, 0.1, given=(features, features, graph))
    yield conv("FAConv", 16, given=(features, features, graph))
    yield conv("HypergraphConv", 16, 32)
    yield conv("RGCNConv", 16, 32, 4, given=(features, graph, kinds))
    yield conv("FastRGCNConv", 16, 32, 4, given=(features, graph, kinds))
    yield conv("RGATConv", 16, 32, 4, given=(features, graph, kinds))
    yield conv("PDNConv", 16, 32, 8, 8, given=(features, graph, per_edge))
    yield conv("GMMConv", 16, 32, 8, 3, given=(features, graph, per_edge))
    yield conv("CGConv", 16, 8, given=(features, graph, per_edge))
    degrees = torch.bincount(torch.bincount(graph[1], minlength=nodes))
    yield conv("PNAConv", 16, 32, ["mean", "max", "std"], ["identity", "amplification"], degrees)

    def mlp(*sizes: int) -> nn.Sequential:
        layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        return nn.Sequential(*layers[:-1], nn.ReLU(), layers[-1])

    yield Case("GINConv", lambda: geometric.GINConv(mlp(16, 32, 32)), (features, graph))
    yield Case("GINEConv", lambda: geometric.GINEConv(mlp(16, 32, 32), edge_dim=8),
               (features, graph, per_edge))  # fmt: skip
    yield Case("EdgeConv", lambda: geometric.EdgeConv(mlp(32, 32, 32)), (features, graph))
    yield Case("NNConv", lambda: geometric.NNConv(16, 32, mlp(8, 32, 512)),
               (features, graph, per_edge))  # fmt: skip
    yield Case("PointNetConv", lambda: geometric.PointNetConv(mlp(19, 32, 32)),
               (features, positions, graph))  # fmt: skip
    yield Case("PointTransformerConv", lambda: geometric.PointTransformerConv(16, 32),
               (features, positions, graph))  # fmt: skip
    yield Case("DirGNNConv", lambda: geometric.DirGNNConv(geometric.SAGEConv(16, 32)),
               (features, graph))  # fmt: skip
    yield Case("GPSConv", lambda: geometric.GPSConv(16, geometric.SAGEConv(16, 16), heads=4),
               (features, graph), {"batch": batch})  # fmt: skip
    for name in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN"):
        yield conv(name, 16, 32, 3, 7)
    yield conv("PMLP", 16, 32, 7, 3)
    yield conv("LINKX", nodes, 16, 32, 7, 2)
    yield conv("LightGCN", nodes, 32, 2, given=(graph,))
    yield conv("AttentiveFP", 16, 32, 7, 8, 2, 2, given=(features, graph, per_edge, batch))
    yield conv("GraphUNet", 16, 32, 7, 2)
    yield conv("SGFormer", 16, 32, 7, given=(features, graph, batch))
    yield conv("MLP", [16, 32, 7], given=(features,))

    class OnBatch(nn.Module):
        """A network of whole graphs, called with a batch of them."""

        def __init__(self, pool: Callable[..., Any]) -> None:
            super().__init__()
            self.conv = geometric.GCNConv(16, 32)
            self.pool = pool
            self.head = nn.Linear(32, 7)

        def forward(self, data: Any) -> Any:
            hidden = self.conv(data.x, data.edge_index).relu()
            return self.head(self.pool(hidden, data.batch))

    graphs = [
        Data(x=torch.empty(25, 16), edge_index=torch.randint(0, 25, (2, 100), generator=generator))
        for _ in range(4)
    ]
    for name in ("global_mean_pool", "global_add_pool", "global_max_pool"):
        pool = getattr(geometric, name)
        yield Case(f"GCN + {name} on a Batch", partial(OnBatch, pool), (Batch.from_data_list(
            graphs),))  # fmt: skip
    yield Case("SAGPooling", lambda: geometric.SAGPooling(16), (features, graph))
    yield Case("TopKPooling", lambda: geometric.TopKPooling(16), (features, graph))


#: By library: its cases, and which of its many models a sweep takes unless told.
LIBRARIES: dict[str, tuple[Callable[[int], Iterator[Case]], int]] = {
    "timm": (timm_cases, 12),
    "transformers": (transformers_cases, 1),
    "diffusers": (diffusers_cases, 1),
    "peft": (peft_cases, 1),
    "pyg": (pyg_cases, 1),
    "pytorchcv": (pytorchcv_cases, 8),
}
