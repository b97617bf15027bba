import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.quantizers.allocation import water_fill
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.entropy import BLOCK, EntropyQuantizer, entropy_quantizers
from kvbench.codecs.quantizers.entropy_tables import entropy_tables
from kvbench.codecs.quantizers.rans import CENTRE, ESCAPE, LARGEST, NEXT, STREAMS, decode, encode, level
from kvbench.errors import KvbenchError

VARIANCES = torch.logspace(1, -5, 24, dtype=torch.float64)
"""From components that need raw bits to those that are nearly always zero."""


def quantizer(bits=3.0):
    return entropy_quantizers([VARIANCES], bits)[0]


def latents(coder, tokens=4 * BLOCK, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(batch, 1, tokens, coder.rank, generator=generator, dtype=torch.float64) - 0.5
    laplace = -uniform.sign() * torch.log1p(-1.999 * uniform.abs()) / 2**0.5
    return laplace * coder.deviation


def expected_values(indices, layout):
    """What the decoder must make of ``indices`` (components, BLOCK), straight from the format's description."""
    tables, values, states = entropy_tables().tables, np.empty(indices.shape, dtype=np.float32), [0] * STREAMS
    for c, component in enumerate(indices):
        for t, index in enumerate(component):
            second = states[t % STREAMS] & 1
            row = layout.rows[c, second]
            named = layout.shifts[c] == 0 and abs(index) < CENTRE - 1 and tables.spans[row, CENTRE + index] & 0xFFFF
            values[c, t] = tables.values[row, CENTRE + index] if named else index - 0.5 * second * np.sign(index)
            states[t % STREAMS] = NEXT[states[t % STREAMS], index & 1]
    return values


@st.composite
def coded_blocks(draw):
    """A layout of random widths, and indices from all zeros to all escapes."""
    octaves = draw(st.lists(st.integers(-5, 17), min_size=1, max_size=5))
    layout = entropy_tables().layout(2.0 ** np.array(octaves))
    spread = 10.0 ** draw(st.integers(-1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32))).standard_cauchy((len(octaves), BLOCK)) * spread
    limit = (LARGEST << layout.shifts)[:, None]
    return layout, np.clip(np.rint(random), -limit, limit).astype(np.int32)


def coded(layout, indices, capacity):
    words = np.full(capacity, 0xABCD, dtype=np.uint16)
    scratch = np.empty(3 * indices.size, dtype=np.uint16)
    return words, encode(indices.ravel(), layout, entropy_tables().tables, scratch, words)


@pytest.mark.parametrize("index", [45642350, -45642350, 2**24 + 1, 3, -3, 0])
def test_levels_are_rounded_once(index):
    """Half a step below an index that fp32 does not hold is not half a step below its neighbour."""
    for second in (0, 1):
        assert level(index, second) == np.float32(index - 0.5 * second * np.sign(index))


@settings(max_examples=60, deadline=None)
@given(coded_blocks())
def test_any_indices_come_back_exactly(case):
    layout, indices = case
    _, needed = coded(layout, indices, 0)
    words, again = coded(layout, indices, needed)  # not a word more than it takes
    assert again == needed
    out = np.empty((1, BLOCK, len(indices)), dtype=np.float32)
    decode(words[None], np.ones(1, dtype=np.float32), layout, entropy_tables().tables, out)
    np.testing.assert_array_equal(out[0].T, expected_values(indices, layout))


@settings(max_examples=20, deadline=None)
@given(coded_blocks())
def test_words_that_are_too_few_are_left_alone(case):
    layout, indices = case
    _, needed = coded(layout, indices, 0)
    words, again = coded(layout, indices, needed - 1)
    assert again == needed
    assert (words == 0xABCD).all()


def test_tables_are_whole():
    tables = entropy_tables().tables
    frequencies = tables.spans & 0xFFFF
    assert (frequencies.sum(1) == tables.slots.shape[1]).all()
    assert (frequencies[:, ESCAPE] > 0).all()  # whatever comes can be coded
    assert (frequencies[:, CENTRE] > 0).all()
    np.testing.assert_array_equal(frequencies[:, 2:CENTRE], frequencies[:, 2 * CENTRE - 2 : CENTRE : -1])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_bytes_are_known_beforehand(bits):
    sides = entropy_quantizers([VARIANCES, VARIANCES / 7], bits)
    total = 0
    for coder in sides:
        stored = coder.encode(latents(coder, batch=2))
        cost = coder.cost(1, coder.rank, torch.float32)
        assert stored["codes"].nbytes * 8 == cost.payload * 2 * 4 * BLOCK
        assert stored["exponents"].nbytes * 8 == cost.scales * 2 * 4 * BLOCK
        total += cost.payload + cost.scales
    assert total == bits * 2 * len(VARIANCES)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, -1e30, 3e38, float("inf"), float("nan")])
def test_no_input_takes_more_bytes(value):
    coder = quantizer(bits=1)
    given = latents(coder)
    given[..., ::3, :] = value
    decoded = coder.decode(coder.encode(given))
    assert decoded.isfinite().all()
    if value == 0:
        assert (decoded[..., ::3, :].abs() <= coder.step).all()


def test_fp16_extremes_are_met_by_a_coarser_step():
    coder = quantizer()
    given = latents(coder) * 60_000
    error = (coder.decode(coder.encode(given)) - given).square().mean() / given.square().mean()
    assert error < 0.01


def test_blocks_are_coded_alone():
    coder = quantizer()
    given = latents(coder, batch=3, tokens=6 * BLOCK)
    stored = coder.encode(given)
    whole = coder.decode(stored)
    for row in range(3):
        for start in range(0, 6, 2):
            span = {name: tensor[row : row + 1, :, start : start + 2] for name, tensor in stored.items()}
            tokens = slice(start * BLOCK, (start + 2) * BLOCK)
            torch.testing.assert_close(coder.decode(span), whole[row : row + 1, :, tokens], rtol=0, atol=0)
            alone = coder.encode(given[row : row + 1, :, tokens])
            assert all(torch.equal(alone[name], span[name]) for name in stored)


def test_threads_change_nothing():
    coder = quantizer()
    given = latents(coder, tokens=5 * BLOCK)
    threads = torch.get_num_threads()
    stored = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            stored.append(coder.encode(given))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_half_the_error_of_fixed_widths_at_equal_bytes(bits):
    coder = quantizer(bits)
    given = latents(entropy_quantizers([VARIANCES], 8)[0], tokens=32 * BLOCK)
    widths = water_fill(VARIANCES, bits * len(VARIANCES))
    fixed = CodebookQuantizer(tuple(widths.tolist()), VARIANCES.sqrt())
    plain = (fixed.decode(fixed.encode(given)) - given).square().sum()
    kept = given[..., : coder.rank]
    error = (coder.decode(coder.encode(kept)) - kept).square().sum() + given[..., coder.rank :].square().sum()
    assert error < 0.6 * plain


def test_more_bits_less_error():
    errors = []
    for bits in (1, 2, 3, 5, 8):
        coder = quantizer(bits)
        given = latents(coder)
        errors.append(float((coder.decode(coder.encode(given)) - given).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_a_flipped_byte_shows():
    coder = quantizer()
    stored = coder.encode(latents(coder, tokens=BLOCK))
    whole = coder.decode(stored)
    for name, place in (("codes", 0), ("codes", 40), ("codes", coder.size // 2), ("exponents", 0)):
        broken = {key: tensor.clone() for key, tensor in stored.items()}
        broken[name].view(torch.uint8).flatten()[place] ^= 0x10
        assert not torch.equal(coder.decode(broken), whole)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.sampled_from([0, 255, None]))
def test_any_bytes_decode_to_something_finite(seed, bits, fill):
    coder = quantizer(bits)
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (1, 1, 3, coder.size), dtype=np.uint8)
    if fill is not None:
        codes[..., random.integers(coder.size) :] = fill
    exponents = random.integers(-(2**15), 2**15, (1, 1, 3), dtype=np.int16)
    stored = {"codes": torch.from_numpy(codes), "exponents": torch.from_numpy(exponents)}
    decoded = coder.decode(stored)
    assert decoded.shape == (1, 1, 3 * BLOCK, coder.rank)
    assert decoded.isfinite().all()


def test_sizes_that_cannot_hold_a_block_are_refused():
    coder = quantizer()
    with pytest.raises(ValueError, match="at least"):
        EntropyQuantizer(coder.deviation, coder.step, 4)
    with pytest.raises(KvbenchError, match="at least"):
        entropy_quantizers([VARIANCES], 0.05)


def test_without_variance_a_side_costs_little_and_comes_back_as_zeros():
    dead, alive = entropy_quantizers([torch.zeros(8, dtype=torch.float64), VARIANCES], 2)
    assert dead.rank == 1
    assert not round_trip(dead, torch.zeros(1, 1, BLOCK, 1)).any()
    assert dead.size < alive.size / 4


def round_trip(coder, given):
    return coder.decode(coder.encode(given))


def test_without_numba_the_error_says_what_to_install(monkeypatch):
    for name in ("rans", "rate_control", "entropy_tables"):
        monkeypatch.delitem(sys.modules, f"kvbench.codecs.quantizers.{name}")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(KvbenchError, match="pip install numba"):
        entropy_quantizers([VARIANCES], 3)
