"""How bases are kept: in 16 bit, orthonormal ones once, and never where a number would be lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.cache.absorb import from_latents, into_latents
from kvbench.codecs.codec import Latents, SideCodec
from kvbench.codecs.quantizers.base import Passthrough
from kvbench.codecs.transforms.fitting import Basis, principal_basis, weighted_basis
from kvbench.codecs.transforms.linear import LinearTransform

SIZE = 24


def moment(seed: int, spread: float = 1.0) -> torch.Tensor:
    """A second moment (SIZE, SIZE) whose directions differ in size by powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -spread, SIZE, dtype=torch.float64)
    return (mixing * scales) @ mixing.T / SIZE


def stored(transform: LinearTransform) -> int:
    """Bytes of its tensors' storages, each once."""
    storages = [tensor.untyped_storage() for tensor in transform.tensors()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_an_orthonormal_basis_is_kept_once() -> None:
    transform = principal_basis(moment(0), 2).transform(torch.zeros(SIZE), 5, torch.float16)
    assert transform.orthonormal and torch.equal(transform.encoder, transform.decoder.mT)
    assert stored(transform) == 2 * (2 * 5 * 12 + SIZE)
    assert transform.decoder.is_contiguous(), "decoding steps read rows of the decoder"


def test_encoder_and_decoder_that_differ_are_both_kept() -> None:
    transform = weighted_basis(moment(0), moment(1), 1).transform(torch.zeros(SIZE), 5, torch.float16)
    assert not transform.orthonormal and stored(transform) == 2 * (2 * 5 * SIZE + SIZE)


def test_moving_keeps_what_is_shared() -> None:
    transform = principal_basis(moment(0), 1).transform(torch.zeros(SIZE), 5, torch.float16)
    assert transform.to(torch.device("meta")).decoder.shape == transform.decoder.shape
    assert stored(transform.to(torch.device("cpu"))) == stored(transform)


@given(st.integers(0, 2**31), st.integers(-12, 12), st.integers(1, SIZE))
@settings(deadline=None, max_examples=30)
def test_metrics_of_any_size_fit_float16(seed: int, exponent: int, rank: int) -> None:
    """Fisher information may be 1e-9 or 1e9 per unit: neither encoder nor decoder may overflow or vanish."""
    metric = moment(seed + 1, spread=2) * 10.0**exponent
    basis = weighted_basis(moment(seed), metric, 1)
    wide, narrow = (basis.transform(torch.zeros(SIZE), rank, dtype) for dtype in (torch.float64, torch.float16))
    states = torch.randn(1, 2, 50, SIZE // 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected, actual = (kept.inverse(kept.forward(states), 2).double() for kept in (wide, narrow))
    error = (actual - expected).transpose(1, 2).reshape(-1, SIZE)
    whole = states.transpose(1, 2).reshape(-1, SIZE)
    squares = [((vectors @ metric) * vectors).sum() for vectors in (error, whole)]
    assert float(squares[0] / squares[1]) < 1e-4, "by the metric that it was fitted to"


def test_the_scale_moves_latents_and_nothing_else() -> None:
    basis = weighted_basis(moment(0), moment(1) * 1e-8, 1)
    scale = basis.scale(7)
    assert scale > 100 and torch.tensor(scale).log2().frac() == 0
    transform = basis.transform(torch.zeros(SIZE), 7, torch.float64)
    torch.testing.assert_close(transform.encoder, basis.encoder[..., :7] * scale, rtol=0, atol=0)
    assert principal_basis(moment(0), 1).scale(7) == 1


def test_what_float16_cannot_hold_is_kept_in_float32() -> None:
    basis = principal_basis(moment(0), 1)
    transform = basis.transform(torch.full((SIZE,), 1e5), 3, torch.float16)
    assert {tensor.dtype for tensor in transform.tensors()} == {torch.float32}
    zeros = Basis(basis.values * 0, basis.encoder * 0, basis.decoder * 0)
    assert zeros.scale(3) == 1


@pytest.mark.parametrize("heads", [1, 2])
def test_queries_meet_wide_numbers(heads: int) -> None:
    """Into the latents and back in fp32: sums in fp16 would lose them."""
    transform = principal_basis(moment(0), 2 // heads).transform(torch.full((SIZE,), 0.5), 6, torch.float16)
    side = Latents("keys", SideCodec(2, 12, transform, Passthrough(torch.float32)), 0, 12)
    query = torch.randn(1, 4, 1, 12) * 1e4
    latents, shift = into_latents(query, side)
    assert latents.dtype == torch.float32 and shift is not None and shift.isfinite().all()
    assert from_latents(latents, side, 4).dtype == torch.float32
    assert transform.dtype == torch.float32 and transform.forward(query[:, :2]).dtype == torch.float32
