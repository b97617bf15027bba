"""From how many tokens on compression pays, bases included."""

from __future__ import annotations

import pytest
import torch
from driving import calibrated, subject
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.cache.break_even import break_even_tokens, paying_from
from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import parse

SPECS = [
    "int:bits=4",
    "int:bits=4,recent=8,block=8",
    "kvtc:bits=3",
    "ftc:bits=2,recent=16",
    "pca:rank=0.25+int:bits=4,group=16",
    "knorm:budget=0.25",
    "tova:tokens=16",
    "turboquant:bits=3",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_length_from_there_on_pays_and_the_one_before_does_not(
    spec: str, family: str, dtype: torch.dtype
) -> None:
    one = subject(family, dtype)
    statistics = calibrated(subject(family, torch.float32))
    plan = parse(spec).fit(one.geometry, statistics)
    model_bytes = plan.model_level_bytes()

    def pays(tokens: int) -> bool:
        return predict_bytes(plan, one.geometry, tokens) + model_bytes < 2 * one.geometry.elements(tokens)

    length = break_even_tokens(plan, one.geometry)
    assert length is not None
    assert all(pays(tokens) for tokens in range(length, length + 200)) and pays(50 * length)
    assert length == 1 or not pays(length - 1)


@pytest.mark.parametrize("spec", ["none", "identity", "hadamard", "pca:rank=1"])
def test_what_is_no_smaller_never_pays(spec: str) -> None:
    one = subject("llama", torch.bfloat16)
    plan = parse(spec).fit(one.geometry, calibrated(subject("llama", torch.float32)))
    assert break_even_tokens(plan, one.geometry) is None


def test_larger_bases_take_longer_to_pay() -> None:
    one = subject("llama", torch.float32, hidden=64, heads=4, kv_heads=2, head_dim=32)
    plans = [parse(spec).fit(one.geometry, calibrated(one)) for spec in ("kvtc:bits=3", "ftc:bits=3,basis=split")]
    lengths = [break_even_tokens(plan, one.geometry) for plan in plans]
    assert lengths[0] is not None and lengths[1] is not None and lengths[0] < lengths[1]


@given(
    fixed=st.integers(0, 10**9),
    saved=st.integers(1, 1000),
    teeth=st.lists(st.integers(-2000, 2000), min_size=1, max_size=40),
    start=st.integers(1, 300),
    before=st.integers(-5000, 5000),
)
@settings(deadline=None)
def test_a_sawtooth_is_searched_for_its_last_zero(
    fixed: int, saved: int, teeth: list[int], start: int, before: int
) -> None:
    period = len(teeth)

    def gain(tokens: int) -> int:
        return before - fixed if tokens < start else tokens * saved + teeth[tokens % period] - fixed

    length = paying_from(gain, period, start)
    assert length is not None
    assert all(gain(tokens) > 0 for tokens in range(length, length + 2 * period))
    assert length == 1 or gain(length - 1) <= 0
