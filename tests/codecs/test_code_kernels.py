"""The kernels that find, pack and unpack codes on the CPU, against the same in torch."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvbench.codecs import in_parts
from kvbench.codecs.packing import pack, unpack
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.lloyd import between, nearest

WIDTHS = st.lists(st.integers(0, 8), min_size=1, max_size=40)


def in_torch():  # type: ignore[no-untyped-def]
    """As where a graph is compiled, and on other devices."""
    return patch("torch.compiler.is_compiling", lambda: True)


def codes_of(widths: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(2**width, (2, 3, 24), generator=generator) for width in widths]
    return torch.stack(columns, -1).byte()


@settings(deadline=None, max_examples=60)
@given(widths=WIDTHS, ordered=st.booleans(), seed=st.integers(0, 99))
def test_packing(widths: list[int], ordered: bool, seed: int) -> None:
    widths = sorted(widths, reverse=True) if ordered else widths
    codes = codes_of(widths, seed)
    packed = pack(codes, widths)
    with in_torch():
        assert torch.equal(packed, pack(codes, widths))
        assert torch.equal(unpack(packed, widths), codes)
    assert torch.equal(unpack(packed, widths), codes)


@settings(deadline=None, max_examples=60)
@given(widths=WIDTHS, seed=st.integers(0, 99))
def test_nearest_levels(widths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    quantizer = CodebookQuantizer(tuple(widths), torch.rand(len(widths), generator=generator) + 0.1)
    latents = 3 * quantizer.deviation * torch.randn(2, 1, 16, len(widths), generator=generator)
    stored = quantizer.encode(latents)
    with in_torch():
        assert torch.equal(stored["codes"], quantizer.encode(latents)["codes"])


@pytest.mark.parametrize("width", range(1, 9))
def test_numbers_beside_boundaries_get_the_right_level(width: int) -> None:
    quantizer = CodebookQuantizer((width,), torch.ones(1))
    boundaries = between(quantizer.levels[width])
    infinity = torch.tensor(torch.inf)
    beside = torch.cat([boundaries, torch.nextafter(boundaries, infinity), torch.nextafter(boundaries, -infinity)])
    numbers = torch.cat([beside, torch.tensor([-3e38, -50, 0, 50, 3e38])])
    numbers = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 8)])
    codes = unpack(quantizer.encode(numbers[None, None, :, None])["codes"], (width,)).flatten()
    assert torch.equal(codes, nearest(numbers, quantizer.levels[width]))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_rows(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(threads)
    widths = (8, 5, 3, 3, 1, 0)
    quantizer = CodebookQuantizer(widths, torch.rand(len(widths), generator=generator) + 0.1)
    latents = torch.randn(3, 1, 40, len(widths), generator=generator)
    stored = quantizer.encode(latents)
    decoded = quantizer.decode(stored)
    monkeypatch.setattr(in_parts, "ENOUGH", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(quantizer.encode(latents)["codes"], stored["codes"])
    assert torch.equal(quantizer.decode(stored), decoded)
