"""Where kernels cannot be had, plain torch attends, after one warning, and says why."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import llvmlite.binding as llvm
import pytest
import torch

from kvbench.kernels import choice as kernels
from kvbench.kernels.choice import kernels_for, missing, warm_up
from kvbench.kernels.decode import attend_exact

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    kernels._load.cache_clear()
    yield
    kernels._load.cache_clear()


def attend() -> str:
    states = torch.randn(1, 2, 40, 16)
    return attend_exact(torch.randn(1, 4, 1, 16), states, states, 0.25, None, None, True).by


def test_kernels_attend_where_they_are() -> None:
    available = kernels_for(CPU)
    assert available is not None and available.name.startswith("numba") and missing("cpu") is None
    assert attend() == available.name
    warm_up(CPU)


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    with pytest.warns(UserWarning, match=r"no decode kernels for cpu: numba cannot be imported .*pip install numba"):
        assert attend() == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert attend() == "torch"
        warm_up(CPU)
    assert "numba" in (missing("cpu") or "")


def test_on_an_old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx": True, "avx2": False})
    with pytest.warns(UserWarning, match="no AVX2"):
        assert attend() == "torch"


def test_keys_that_are_too_wide_for_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    available = kernels_for(CPU)
    assert available is not None
    for widest, by in ((16, available.name), (15, "torch")):
        monkeypatch.setitem(kernels._DEVICES, "cpu", lambda widest=widest: replace(available, widest=widest))
        kernels._load.cache_clear()
        assert attend() == by


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_without_a_kernel(dtype: torch.dtype) -> None:
    states = torch.randn(1, 2, 40, 16, dtype=dtype)
    query = torch.randn(1, 4, 1, 16, dtype=dtype)
    assert attend_exact(query, states, states, 0.25, None, None, True).by == "torch"
    assert attend_exact(query.float(), states.float(), states.float(), 0.25, None, 5.0, True).by == "torch"  # softcap
