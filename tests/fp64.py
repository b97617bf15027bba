"""Running models in true fp64: their own fp32 up- and down-casts are undone, so that equal means 1e-15, not 1e-6."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from kvbench.codecs.quantizers.lloyd import gaussian_levels, laplace_levels

_CASTS = (torch.Tensor.float, torch.Tensor.to, torch.Tensor.type)


def _is_fp64(args: tuple) -> bool:
    return bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64


class Keep64(TorchFunctionMode):
    """While open, fp64 tensors stay fp64 where model code asks for fp32 (norms, softmax, routers)."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not (function in _CASTS or "dtype" in kwargs) or not _is_fp64(args):
            return function(*args, **kwargs)
        if function is torch.Tensor.float:
            return args[0]
        if function in (torch.Tensor.to, torch.Tensor.type):
            args = (args[0], *(torch.float64 if arg is torch.float32 else arg for arg in args[1:]))
        if kwargs.get("dtype") is torch.float32:
            kwargs = kwargs | {"dtype": torch.float64}
        return function(*args, **kwargs)


@pytest.fixture
def fp64() -> Iterator[None]:
    """True fp64 inside the models, and no gradients."""
    laplace_levels(), gaussian_levels()  # made once and kept: not in this mode, or they would be fp64 for everybody
    with Keep64(), torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from more threads, and waiting for a second core on a busy machine costs a lot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """No gradients."""
    with torch.no_grad():
        yield
