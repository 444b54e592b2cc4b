"""Names that vulture finds no use of, and where their use is."""

from __future__ import annotations

from typing import Any


def used_by_torch(rule: Any) -> tuple[Any, ...]:
    """Arguments of torch's functions that change no cost, by which a shape rule is called."""
    return (
        *(rule.align_corners, rule.antialias, rule.recompute_scale_factor),
        *(rule.correction, rule.unbiased, rule.momentum, rule.eps, rule.norm_type, rule.max_norm),
        *(rule.count_include_pad, rule.divisor_override, rule.return_indices),
        *(rule.cudnn_enable, rule.cudnn_enabled, rule.non_blocking),
        *(rule.descending, rule.stable, rule.offs, rule.sparse, rule.sparse_grad),
        *(rule.ignore_index, rule.label_smoothing),
        *(rule.padding_idx, rule.padding_value, rule.scale_grad_by_freq),
    )


def used_by_transformers(layer: Any, cache: Any) -> tuple[Any, ...]:
    """What a cache and its layers are asked."""
    return (
        *(layer.is_sliding, layer.lazy_initialization, layer.get_seq_length, layer.get_max_length),
        cache.layer_class_to_replicate,
    )


def used_by_torch_pruning(cat: Any) -> Any:
    """Which dimension a ``cat`` joins."""
    return cat._saved_dim


def used_by_name(record: Any) -> tuple[Any, ...]:
    """Fields that msgspec reads and writes, or that a table of columns or terms names."""
    return (
        *(record.bytes_workspace, record.vector_floats, record.base_path),
        *(
            record.from_20,
            record.median_ape,
            record.rmspe,
            record.within_5,
            record.within_10,
            record.within_20,
        ),
        *(record.removed_ms, record.measured_w, record.held_out_w, record.fitted_w),
        *(record.free_parameters, record.effective_layers, record.leave_one_network_out),
        *(record.mean_of_the_others, record.held_out_rows),
        *(record.held_out_by),
        *(record.url, record.license, record.commit),
        *(record.flawed, record.networks_median_percent),
    )
