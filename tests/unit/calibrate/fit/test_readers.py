"""Lines of public tables become the layers that were measured (lines in the tables' own form)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_neuralpower.calibrate.fit.readers import (
    DATA_VARIABLE,
    aiconfigurator_attention,
    aiconfigurator_decode,
    aiconfigurator_gemm,
    aiconfigurator_moe,
    caffe_layers,
    data_root,
    deepbench_conv,
    deepbench_gemm,
)
from pytest_neuralpower.errors import ProfileError

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import Row

CAFFE = """\
network,layer,top_shape,forward_ms
alexnet,input,2 3 224 224,0.001
alexnet,conv1,2 64 55 55,4.0
alexnet,conv1/relu,2 64 55 55,0.8
alexnet,pool1/3x3_s2,2 64 27 27,0.8
alexnet,fc6,2 4096,3.0
alexnet,fc7,2 1000,1.0
alexnet,__TOTAL_FORWARD__,,9.6
googlenet,pool2/3x3_s2,2 192 28 28,2.4
googlenet,pool2/3x3_s2_split,2 192 28 28,0.003
googlenet,inception_3a/1x1,2 64 28 28,0.8
googlenet,inception_3a/3x3_reduce,2 96 28 28,1.4
googlenet,inception_3a/relu_3x3_reduce,2 96 28 28,0.3
googlenet,inception_3a/3x3,2 128 28 28,4.5
googlenet,inception_3a/5x5,2 32 28 28,0.7
googlenet,inception_3a/pool,2 192 28 28,2.1
googlenet,inception_3a/pool_proj,2 32 28 28,0.5
googlenet,inception_3a/output,2 256 28 28,0.9
"""


@pytest.fixture
def caffe(tmp_path: Path) -> Path:
    path = tmp_path / "caffe.csv"
    path.write_text(CAFFE)
    return path


def shapes(rows: list[Row]) -> list[tuple[tuple[int, ...], ...]]:
    return [
        (row.layer.inputs[0].shape, *(weight.shape for weight in row.layer.weights[:1]))
        for row in rows
    ]


class TestCaffe:
    def test_a_convolution_reads_the_layer_below(self, caffe: Path) -> None:
        rows = caffe_layers(caffe, {"kinds": ["conv"]})
        assert shapes(rows) == [
            ((2, 3, 224, 224), (64, 3, 11, 11)),
            ((2, 192, 28, 28), (64, 192, 1, 1)),
            ((2, 192, 28, 28), (96, 192, 1, 1)),
            ((2, 96, 28, 28), (128, 96, 3, 3)),
            ((2, 192, 28, 28), (32, 192, 5, 5)),  # no reduction in this short table
            ((2, 192, 28, 28), (32, 192, 1, 1)),
        ]
        assert [row.layer.param("padding")[0] for row in rows] == [2, 0, 0, 1, 2, 0]
        assert all(len(row.layer.weights) == 2 for row in rows)
        assert [row.line for row in rows][:2] == [3, 11]

    def test_pools_and_streams_move_their_maps_once(self, caffe: Path) -> None:
        pools = caffe_layers(caffe, {"kinds": ["pool"]})
        assert [row.layer.param("kernel") for row in pools] == [(3, 3)] * 3
        assert shapes(pools)[0] == ((2, 64, 55, 55),)
        relu = caffe_layers(caffe, {"kinds": ["activation"]})[0].layer
        assert relu.cost.bytes_moved == 2 * 4 * 2 * 64 * 55 * 55
        cat = caffe_layers(caffe, {"kinds": ["memory"]})[0].layer
        assert cat.cost.bytes_in == cat.cost.bytes_out

    def test_a_fully_connected_layer_reads_the_whole_map_below(self, caffe: Path) -> None:
        rows = caffe_layers(caffe, {"kinds": ["linear"]})
        assert shapes(rows) == [
            ((2, 64 * 27 * 27), (4096, 64 * 27 * 27)),
            ((2, 4096), (1000, 4096)),
        ]

    def test_totals_inputs_and_splits_are_no_layers(self, caffe: Path) -> None:
        kinds = ["conv", "pool", "activation", "memory", "linear"]
        assert len(caffe_layers(caffe, {"kinds": kinds})) == 14


def test_deepbench_convolutions_are_selected_by_column(tmp_path: Path) -> None:
    path = tmp_path / "conv.csv.gz"
    head = "device,W,H,C,N,K,S_filter_w,R_filter_h,pad_w,pad_h,stride_w,stride_h,forward_ms,algo\n"
    lines = "A,700,161,1,4,32,20,5,0,0,2,2,0.2,GEMM\nA,9,9,1,4,32,3,3,1,1,1,1,0.1,FFT\n"
    path.write_bytes(gzip.compress((head + lines + lines.replace("A,", "B,")).encode()))
    (row,) = deepbench_conv(path, {"select": {"device": "A", "algo": ["GEMM", "OTHER"]}})
    assert row.layer.inputs[0].shape == (4, 1, 161, 700)
    assert row.layer.weights[0].shape == (32, 1, 5, 20)
    assert row.layer.outputs[0].shape == (4, 32, 79, 341)
    assert (row.runtime_ms, row.line) == (0.2, 2)


@pytest.mark.parametrize("kind", ["linear", "matmul"])
def test_a_deepbench_product_is_the_layer_that_runs_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "gemm.csv"
    path.write_text("M,N,K,time_ms\n1760,16,700,0.2\n")
    (row,) = deepbench_gemm(path, {"as": kind})
    assert row.layer.kind == kind
    assert row.layer.outputs[0].shape == (16, 1760)  # N samples of M outputs
    assert row.layer.macs == 1760 * 16 * 700


def test_the_tables_are_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert data_root(Path("repository")) == tmp_path
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ProfileError, match=f"set {DATA_VARIABLE} to the folder"):
        data_root(tmp_path)


def test_or_beside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    (tmp_path / "shared/data").mkdir(parents=True)
    assert data_root(tmp_path / "checkout") == tmp_path / "shared/data"


GEMM = """\
m,n,k,latency,power
128,4096,1024,0.0125,410.5
1,64,32,0.0024,140.0
"""
ATTENTION = """\
batch_size,isl,num_heads,num_key_value_heads,head_dim,latency,power
2,512,32,8,128,0.05,500.0
"""
DECODE = """\
batch_size,isl,step,num_heads,num_key_value_heads,head_dim,latency,power
4,1,1023,32,8,128,0.02,310.0
8,1,1023,32,8,128,0.4,420.0
"""
EXPERTS = """\
num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency
16,2048,768,8,128,2,1,balanced,0.3
16,2048,768,8,128,2,1,power_law_1.01,0.15
64,2048,768,8,128,2,1,balanced,0.31
64,2048,768,8,128,2,1,power_law_1.01,0.29
"""


class TestAiconfigurator:
    def test_a_product_is_a_linear_layer_or_a_matmul(self, tmp_path: Path) -> None:
        path = tmp_path / "gemm.csv"
        path.write_text(GEMM)
        linear = aiconfigurator_gemm(path, {"as": "linear"})
        matmul = aiconfigurator_gemm(path, {"as": "matmul"})
        assert shapes(linear)[0] == ((128, 1024), (4096, 1024))
        assert [tensor.shape for tensor in matmul[0].layer.inputs] == [(128, 1024), (1024, 4096)]
        assert {row.layer.dtype for row in (*linear, *matmul)} == {"bfloat16"}
        assert [(row.runtime_ms, row.power_w) for row in linear] == [(0.0125, 410.5), (0.0024, 140)]

    def test_rows_under_the_least_time_are_left_out_with_the_reason(self, tmp_path: Path) -> None:
        path = tmp_path / "gemm.csv"
        path.write_text(GEMM)
        rows = aiconfigurator_gemm(path, {"as": "linear", "least_ms": 0.01})
        assert [row.flaw for row in rows] == ["", "under 0.01 ms"]

    def test_products_slower_than_those_of_more_rows_can_be_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "gemm.csv"
        lines = ("2,64,32,0.009", "4,64,32,0.003", "1,64,32,0.004", "1,32,32,0.009")
        path.write_text("m,n,k,latency\n" + "\n".join(lines))
        rows = aiconfigurator_gemm(path, {"as": "linear", "times_of_more": 1.5})
        reason = "over 1.5 times what more rows take by the same weight"
        assert [row.flaw for row in rows] == [reason, "", "", ""]

    def test_a_product_in_8_bits_has_a_result_that_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "gemm.csv"
        path.write_text(GEMM)
        layer = aiconfigurator_gemm(path, {"as": "linear", "dtype": "float8_e4m3fn"})[0].layer
        dtypes = [each.dtype for each in (*layer.inputs, *layer.weights, *layer.outputs)]
        assert (layer.dtype, *dtypes) == (*["float8_e4m3fn"] * 3, "bfloat16")

    def test_a_cache_in_8_bits_is_read_by_queries_that_are_not(self, tmp_path: Path) -> None:
        path = tmp_path / "decode.csv"
        path.write_text(DECODE)
        layer = aiconfigurator_decode(path, {"dtype": "float8_e4m3fn"})[0].layer
        assert [each.dtype for each in layer.inputs] == ["bfloat16", *["float8_e4m3fn"] * 2]
        assert layer.dtype == "float8_e4m3fn"

    def test_power_law_routing_stands_for_balanced_that_was_not_timed(self, tmp_path: Path) -> None:
        path = tmp_path / "experts.csv"
        path.write_text(EXPERTS)
        rows = aiconfigurator_moe(path, {"balanced": False})
        assert rows[2].runtime_ms + rows[3].runtime_ms == pytest.approx(0.29)

    def test_a_table_without_power_has_none(self, tmp_path: Path) -> None:
        path = tmp_path / "gemm.csv"
        path.write_text("m,n,k,latency\n128,4096,1024,0.0125\n")
        assert aiconfigurator_gemm(path, {"as": "linear"})[0].power_w is None

    def test_attention_keeps_shared_heads_and_its_mask(self, tmp_path: Path) -> None:
        path = tmp_path / "attention.csv"
        path.write_text(ATTENTION)
        (row,) = aiconfigurator_attention(path, {"causal": True})
        query, key, value = (tensor.shape for tensor in row.layer.inputs)
        assert query == (2, 32, 512, 128)
        assert key == value == (2, 8, 512, 128)
        assert row.layer.param("causal") is True

    def test_decoding_has_one_query_to_the_cached_keys_and_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "decode.csv"
        path.write_text(DECODE)
        options = {"groups": ["num_heads", "head_dim"], "power_least_ms": 0.3}
        rows = aiconfigurator_decode(path, options)
        query, key, value = (tensor.shape for tensor in rows[0].layer.inputs)
        assert query == (4, 32, 1, 128)
        assert key == value == (4, 8, 1024, 128)
        # Held out together, whatever the batch.
        assert rows[0].shape_group == rows[1].shape_group
        assert dict(rows[0].group) == {"num_heads": "32", "head_dim": "128"}
        # Short rows draw what ran before them.
        assert [row.power_w for row in rows] == [None, 420.0]

    def test_a_mixture_of_experts_is_its_two_products(self, tmp_path: Path) -> None:
        path = tmp_path / "experts.csv"
        path.write_text(EXPERTS)
        rows = aiconfigurator_moe(path, {})
        up, down = rows[:2]
        # 768 features on two ranks: 384, gate and up side by side.
        assert [tensor.shape for tensor in up.layer.inputs] == [(128, 2048), (128, 2048, 768)]
        assert [tensor.shape for tensor in down.layer.inputs] == [(128, 384), (128, 384, 2048)]
        share = up.layer.macs / (up.layer.macs + down.layer.macs)
        assert up.runtime_ms == pytest.approx(share * 0.15)
        assert up.runtime_ms + down.runtime_ms == pytest.approx(0.15)
        # One row an expert is routed as by a power law, four as if balanced.
        assert rows[2].runtime_ms + rows[3].runtime_ms == pytest.approx(0.31)
        assert len(rows) == 4
