"""Which decode kernels this machine has, found out once; without any, plain torch does the work and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.kernels import reference
from kvbench.kernels.reference import Part, Partial


@dataclass(frozen=True)
class Kernels:
    """Decode attention for one kind of device: for queries of ``dtypes``; exact tensors are ``stored`` in any of those.

    ``prepare`` makes attention over codes that stay where they are, with arguments like those of
    :class:`kvbench.kernels.cpu.coded.CodedAttention`; ``readable`` says whether it takes these keys and values.
    ``basis`` makes of a decoder (groups, rank, heads, head_dim) and a mean (groups, heads, head_dim) what it takes to
    go into latents and back by itself; None if it does not. ``rebuilds`` tells from which readable codes it takes
    :class:`~kvbench.kernels.rebuilding.RebuiltKeys`, alone or beside other keys; None if it never does. Without a
    ``basis`` it takes what is absorbed beside them through their decoder. ``merge`` is
    :func:`kvbench.kernels.reference.merge` of their results. ``instructions`` are those of the processor that they are
    compiled for, where there is a choice.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    stored: tuple[torch.dtype, ...]
    exact: Callable[..., Part]
    prepare: Callable[..., Callable[..., Part]]
    readable: Callable[[Coded, Coded], bool]
    merge: Callable[[Sequence[Part]], Partial]
    basis: Callable[[Tensor, Tensor], Any] | None = None
    rebuilds: Callable[[Coded, int], bool] | None = None
    instructions: str = ""
    widest: int | None = None
    """Channels that exact keys may have at most; None: any number."""
    decouples: bool = False
    """Whether queries may be two side by side: one for keys beside, one for those that it is taken into latents for."""
    by_address: bool = False
    """Whether what ``prepare`` makes keeps no stored tensor alive, and so may itself be kept from step to step."""

    def takes(self, width: int, *stored: torch.dtype) -> bool:
        """Whether ``exact`` reads keys of that many channels, and values, in these dtypes where they lie."""
        return (self.widest is None or width <= self.widest) and set(stored) <= set(self.stored)

    @property
    def title(self) -> str:
        """The name and the instructions, for people."""
        return f"{self.name} {self.instructions}".strip()


def kernels_for(device: torch.device) -> Kernels | None:
    """The kernels for tensors on ``device``; None, after one warning, where there are none."""
    kernels = _load(device.type)
    return kernels if isinstance(kernels, Kernels) else None


def missing(device: str) -> str | None:
    """Why there are no kernels for ``device`` ("cpu", "cuda"); None if there are."""
    reason = _load(device)
    return reason if isinstance(reason, str) else None


def warm_up(device: torch.device) -> None:
    """Compile every kernel, or load it from the disk: nobody's timing should contain that."""
    if device.type == "cpu":
        CodebookQuantizer((1,), torch.ones(1)).decode({"codes": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)})
    kernels = kernels_for(device)
    if kernels is None:
        return
    query, keys = torch.zeros(1, 1, 1, 16, device=device), torch.zeros(1, 1, 64, 16, device=device)
    coded = Coded(torch.zeros(1, 1, 8, 128, dtype=torch.uint8, device=device), (8,) * 16, 16)
    attention = kernels.prepare((1, 1, 1, 16), coded, coded, 64, 1.0)
    kernels.merge([kernels.exact(query, keys, keys, 1.0), attention(query)])


@lru_cache(maxsize=4)
def _load(device: str) -> Kernels | str:
    try:
        if device not in _DEVICES:
            raise _MissingError(f"none are written for it; known: {', '.join(_DEVICES)}")
        return _DEVICES[device]()
    except _MissingError as reason:
        warnings.warn(f"no decode kernels for {device}: {reason}; plain torch attends instead", stacklevel=2)
        return str(reason)


class _MissingError(Exception):
    """Why kernels cannot be had."""


def _cpu() -> Kernels:
    try:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
        if "avx" in features and not features.get("avx2"):
            raise _MissingError("this processor has no AVX2")
        from kvbench.kernels.cpu import coded, exact, rebuilt, step
        from kvbench.kernels.cpu.llvm import matrix_ops, vectors
    except ImportError as error:
        raise _MissingError(f"numba cannot be imported ({error}); pip install numba") from error
    return Kernels(
        "numba",
        (torch.float32,),
        exact.STORED,
        exact.exact_decode,
        coded.CodedAttention,
        coded.readable,
        step.merge_parts,
        coded.LatentBasis,
        rebuilt.rebuilds,
        "AMX" if matrix_ops.has_matrices() else "VNNI" if vectors.has_vnni() else "SIMD",
        decouples=True,
        by_address=True,
    )


def _cuda() -> Kernels:
    try:
        from kvbench.kernels.triton import coded as triton_coded
        from kvbench.kernels.triton import exact as triton_exact
        from kvbench.kernels.triton import rebuilt as triton_rebuilt
    except ImportError as error:
        raise _MissingError(f"triton cannot be imported ({error}); pip install triton") from error
    return Kernels(
        "triton",
        triton_exact.DTYPES,
        triton_exact.DTYPES,
        triton_exact.triton_exact_decode,
        triton_coded.CodedAttention,
        triton_coded.readable,
        reference.merge,
        rebuilds=triton_rebuilt.rebuilds,
        widest=triton_exact.WIDEST,
    )


_DEVICES: dict[str, Callable[[], Kernels]] = {"cpu": _cpu, "cuda": _cuda}
