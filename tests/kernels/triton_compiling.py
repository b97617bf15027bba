"""Compiles the Triton kernels for GPUs that are not there: a program of its own, run by :mod:`test_triton_kernels`.

Triton brings an assembler, and needs the driver only to say which GPU to compile for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys
from kvbench.kernels.triton import coded as triton_coded
from kvbench.kernels.triton import exact as triton_exact
from kvbench.kernels.triton import splits as triton_splits


class AbsentGPU:
    """The calls that Triton makes to a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel that is compiled instead of launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def compile_only(*arguments: Any, **options: Any) -> None:
            binary = self.kernel.warmup(*arguments, grid=grid, **options)
            shared = binary.metadata.shared
            assert len(binary.asm["cubin"]) > 1000 and shared <= 99 * 1024, f"{shared} bytes of shared memory"
            asynchronous = "cp.async" in binary.asm["ptx"]
            print(f"{binary.metadata.name}: {shared} bytes of shared memory, asynchronous copies: {asynchronous}")

        return compile_only


def coded(keys: Quantizer, rank: int, dtype: torch.dtype, values: Quantizer | None = None) -> None:
    states = torch.randn(1, 2, 512, rank)
    sides = [each.coded(each.encode(states)) for each in (keys, values or keys)]  # type: ignore[attr-defined]
    triton_coded.triton_coded_attention(torch.zeros(1, 2, 4, rank, dtype=dtype), *sides, 500, 0.1)


def rebuilt(quantizer: Quantizer, rank: int, dtype: torch.dtype, fast: tuple[int, ...] | None = None) -> None:
    """Keys of two heads of 128 dimensions, in bands if some of them are ``fast``."""
    keys = quantizer.coded(quantizer.encode(torch.randn(1, 2, 512, rank)))  # type: ignore[attr-defined]
    turn = Turn(tuple((dim + 64) % 128 for dim in range(128)), (-1.0,) * 64 + (1.0,) * 64)
    block = 0 if fast is None else 128
    told = RebuiltKeys(keys, torch.randn(2, rank, 2, 128), torch.randn(2, 2, 128), turn, fast, block)
    shape, absorbed = (1, 2, 8, 128), None if fast is None else keys
    rotary = Rotary(turn, torch.ones(600, 128), torch.ones(600, 128), torch.zeros(1, 1, 512, dtype=torch.int32))
    attention = triton_coded.CodedAttention(shape, absorbed, keys, 512, 0.1, rebuilt=told)
    attention(torch.zeros(shape, dtype=dtype), None, KeyRotation(rotary, rotary))


def main(capability: int) -> None:
    driver.set_active(AbsentGPU(capability))
    triton_coded.attend = Compiled(triton_coded.attend)
    triton_exact._attend = Compiled(triton_exact._attend)
    triton_splits._merge = Compiled(triton_splits._merge)
    query, states = torch.zeros(1, 2, 4, 128, dtype=torch.bfloat16), torch.zeros(1, 2, 512, 128, dtype=torch.bfloat16)
    triton_exact.triton_exact_decode(query, states, states, 0.1)
    coded(IntegerQuantizer(4, 128), 128, torch.bfloat16)
    coded(CodebookQuantizer((6,) * 8 + (3,) * 4 + (0,) * 4, torch.ones(16)), 16, torch.float16)
    coded(IntegerQuantizer(2, 32, "token"), 128, torch.bfloat16, IntegerQuantizer(2, 32))
    mixture = CodebookQuantizer((6,) * 32 + (3,) * 64 + (2,) * 64 + (0,) * 32, torch.ones(192))
    rebuilt(mixture, 192, torch.bfloat16)
    rebuilt(IntegerQuantizer(4, 128), 128, torch.float32, tuple(range(12)) + tuple(range(64, 76)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
