"""The mapping: what the hardware can hold, counted right, and nothing cheaper left."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_neuralpower.eyeriss import (
    EYERISS,
    EYERISS_65NM,
    Bits,
    ConvShape,
    EyerissError,
    Hardware,
    layer_energy,
    layer_mapping,
)
from pytest_neuralpower.eyeriss.mapping import (
    Geometry,
    PassSizes,
    TileSizes,
    best_mapping,
    count_accesses,
    movement_cost,
    reloads,
    rows_delivered,
    rows_read,
    strip_sizes,
)

CONV2 = ConvShape(27, 27, 96, 256, (5, 5), padding=(2, 2, 2, 2), groups=2)
CONV3 = ConvShape(13, 13, 256, 384, (3, 3), padding=(1, 1, 1, 1))


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    kernel = draw(st.tuples(st.integers(1, 13), st.integers(1, 7)))
    return ConvShape(
        height=draw(st.integers(13, 40)),
        width=draw(st.integers(7, 40)),
        channels=groups * draw(st.integers(1, 40)),
        filters=groups * draw(st.integers(1, 40)),
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=(draw(st.integers(0, 2)),) * 4,
        groups=groups,
    )


@given(shapes(), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_mapping_fits_the_array_the_register_files_and_the_buffer(shape, batch):
    mapping = layer_mapping(shape, batch=batch)
    geometry = Geometry(shape, batch, EYERISS, 256)
    width = geometry.kernel_width
    p, q = mapping.p, mapping.q
    assert p * q * width + q * width + p <= 256
    assert geometry.set_height * mapping.e * mapping.r * mapping.t <= EYERISS.pes
    assert geometry.set_height * mapping.r <= EYERISS.rows
    rows = min(shape.height, (mapping.strip - 1) * shape.stride[0] + shape.kernel[0])
    sums = mapping.n * mapping.m * mapping.strip * geometry.strip_width
    assert 2 * (mapping.n * mapping.c * rows + sums) <= EYERISS.buffer_bytes
    assert 0 < mapping.utilisation <= 1


@given(shapes(), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_every_value_is_moved_at_least_once_and_every_product_read(shape, batch):
    moved = layer_mapping(shape, batch=batch).accesses
    assert moved.weight.dram >= shape.weights
    assert moved.output_map.dram >= shape.outputs * batch
    assert moved.weight.buffer >= moved.weight.dram
    assert moved.input_map.buffer >= moved.input_map.dram
    assert moved.weight.register_file == moved.input_map.register_file == shape.macs * batch
    # Each product is added somewhere: in a register file, on the way between PEs, in the buffer.
    sums = moved.output_map
    added = sums.register_file / 2 + sums.array + sums.buffer / 2
    assert added >= (shape.macs - shape.outputs) * batch * 0.999


def test_search_finds_no_dearer_mapping_than_the_chips_own():
    # JSSC 2017, Table III, CONV2 at batch 4: n 1, m 64, e 27, p 16, q 2, r 1, t 1.
    geometry = Geometry(CONV2, 4, EYERISS, 256)
    read = geometry.rows_read(27)
    chip = count_accesses(
        geometry, TileSizes(1, 27, 64, 2, read, 2, 4, 1), PassSizes(27, 16, 2, 1, 1, read)
    )
    theirs = sum(movement_cost(chip, EYERISS_65NM, Bits()))
    ours = layer_energy(CONV2, batch=4)
    assert ours.total - ours.computation < theirs


def test_buffer_traffic_of_the_chips_mapping_is_what_the_chip_measured():
    # JSSC 2017, Table V: 77.6 MB for CONV2, batch 4. The chip also parks finished sums there.
    geometry = Geometry(CONV2, 4, EYERISS, 256)
    read = geometry.rows_read(27)
    counted = count_accesses(
        geometry, TileSizes(1, 27, 64, 2, read, 2, 4, 1), PassSizes(27, 16, 2, 1, 1, read)
    )
    words = counted.input_map.buffer + counted.output_map.buffer + 2 * CONV2.outputs * 4
    assert 2e-6 * words == pytest.approx(77.6, rel=0.03)


def test_search_matches_brute_force_on_a_small_layer():
    shape = ConvShape(6, 6, 4, 6, (3, 3), padding=(1, 1, 1, 1))
    small = Hardware(rows=4, columns=3, buffer_bytes=400, stream_bytes=0, register_bytes=40)
    geometry = Geometry(shape, 2, small, 20)
    least = float("inf")
    for n, strip, m, c in itertools.product((1, 2), (1, 2, 3, 6), (1, 2, 3, 6), (1, 2, 4)):
        held = 2 * n * (c * min(6, strip + 2) * 6 + m * strip * 6)
        trips = (-(-2 // n) * (6 // strip), 6 // m, 4 // c)
        for order in map("".join, itertools.permutations("nmc")):
            factors = [int(f) for f in reloads(order, *trips)]
            if held + (18 * m * c if factors[1] < trips[0] else 0) > 400:
                continue
            tile = TileSizes(n, strip, m, c, geometry.rows_read(strip), *factors)
            for e, p, q in itertools.product((1, 2, 3), (1, 2, 3), (1, 2)):
                if 3 * p * q + 3 * q + p > 20:
                    continue
                t = min(3 // e, -(-6 // p))
                passes = PassSizes(e, p, q, 1, t, geometry.rows_read(e))
                counted = count_accesses(geometry, tile, passes)
                least = min(least, float(sum(movement_cost(counted, EYERISS_65NM, Bits()))))
    found = best_mapping(shape, 2, Bits(), EYERISS_65NM, small)
    energy = sum(movement_cost(found.accesses, EYERISS_65NM, Bits()))
    # The busier array may cost up to 5%; the search also tries sizes this test leaves out.
    assert 0.9 * least < energy <= 1.05 * least


def test_larger_memories_never_cost_more():
    energy = {
        kilobytes: layer_energy(
            CONV3, batch=4, hardware=replace(EYERISS, buffer_bytes=kilobytes * 1024)
        ).total
        for kilobytes in (32, 108, 432)
    }
    assert energy[32] >= energy[108] * 0.99 >= energy[432] * 0.98
    assert energy[32] > energy[432]


def test_weights_are_amortised_over_the_batch():
    fully_connected = ConvShape(1, 1, 4096, 4096)
    one, sixteen = (
        layer_mapping(fully_connected, batch=batch).accesses.weight.dram for batch in (1, 16)
    )
    assert one == sixteen == fully_connected.weights


def test_network_of_alexnet_size_is_mapped_in_a_second():
    best_mapping.cache_clear()
    start = time.perf_counter()
    for batch in (1, 4, 16):
        layer_mapping(CONV2, batch=batch)
        layer_mapping(CONV3, batch=batch)
    searched = time.perf_counter() - start
    start = time.perf_counter()
    layer_mapping(CONV2, batch=4)
    assert time.perf_counter() - start < searched / 20  # cached
    assert searched < 5  # about 0.1 s on an idle core


def test_tall_and_wide_filters_are_folded():
    tall = ConvShape(64, 64, 3, 8, (31, 31), padding=(15,) * 4)
    assert Geometry(tall, 1, EYERISS, 256).row_folds == 3
    wide = ConvShape(1, 400, 3, 4, (1, 300))
    assert Geometry(wide, 1, EYERISS, 256).column_folds == 3
    for shape in (tall, wide):
        assert layer_energy(shape).total > 5 * shape.macs


def test_rows_too_wide_for_the_buffer_are_cut():
    audio = ConvShape(1, 160_000, 1, 8, (1, 400), stride=(1, 5))
    geometry = Geometry(audio, 1, EYERISS, 256)
    assert geometry.column_strips > 1
    # Strips overlap by the kernel less one stride.
    assert geometry.columns_read == 160_000 + (geometry.column_strips - 1) * 395
    assert layer_energy(audio).total > 0


def test_buffer_too_small_for_any_tile_is_refused_in_one_line():
    with pytest.raises(EyerissError, match="fits a buffer of 16 bytes: enlarge") as caught:
        layer_energy(CONV3, hardware=replace(EYERISS, buffer_bytes=16, stream_bytes=0))
    assert "\n" not in str(caught.value)


@given(
    st.tuples(
        st.integers(1, 20),
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(0, 4),
        st.integers(1, 20),
    )
)
@settings(deadline=None)
def test_rows_read_are_those_that_the_outputs_touch(case):
    length, kernel, stride, dilation, pad, size = case
    reach = dilation * (kernel - 1) + 1
    outputs = (length + 2 * pad - reach) // stride + 1
    if outputs < 1:
        return
    needed = [
        {o * stride + k * dilation - pad for k in range(kernel)} & set(range(length))
        for o in range(outputs)
    ]
    options = {
        "outputs": outputs, "length": length, "kernel": kernel, "stride": stride,
        "dilation": dilation, "before": pad,
    }  # fmt: skip
    strips = [needed[start : start + size] for start in range(0, outputs, size)]
    assert rows_read(size, **options) == sum(len(set().union(*strip)) for strip in strips)
    assert rows_delivered(**options) == sum(map(len, needed))


def test_strip_sizes_split_evenly_and_keep_both_ends():
    assert strip_sizes(13, 20) == (1, 2, 3, 4, 5, 7, 13)
    assert strip_sizes(13, 20, limit=5) == (1, 2, 3, 4, 5)
    thinned = strip_sizes(4096, 12)
    assert len(thinned) <= 12
    assert thinned[0] == 1
    assert thinned[-1] == 4096


@pytest.mark.parametrize(
    ("order", "expected"),
    [("nmc", (3, 2, 1)), ("mcn", (3, 1, 4)), ("ncm", (1, 2, 4)), ("cmn", (3, 1, 4))],
)
def test_reloads_follow_the_order_of_the_loops(order, expected):
    assert tuple(int(factor) for factor in reloads(order, 2, 3, 4)) == expected


def test_a_loop_of_one_trip_replaces_nothing():
    # One tile of filters and channels: the weights stay whatever the order.
    assert all(int(reloads(order, 8, 1, 1)[1]) == 1 for order in ("nmc", "mcn", "cnm"))
