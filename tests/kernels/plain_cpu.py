"""The CPU kernels compiled as for a processor with AVX2 and no more, against fp64: a process of its own, run by a test.

The kernels look for instructions while they are imported, so those are hidden before.
"""

from __future__ import annotations

import llvmlite.binding as llvm

features = {name: has and not name.startswith("avx512") for name, has in llvm.get_host_cpu_features().items()}
llvm.get_host_cpu_features = lambda: features

import torch  # noqa: E402

from kvbench.codecs.kernel_view import Coded, kernel_view  # noqa: E402
from kvbench.codecs.quantizers.codebook import CodebookQuantizer  # noqa: E402
from kvbench.codecs.quantizers.integer import IntegerQuantizer  # noqa: E402
from kvbench.kernels.cpu.coded import coded_attention  # noqa: E402
from kvbench.kernels.cpu.exact import exact_decode  # noqa: E402
from kvbench.kernels.cpu.llvm import vectors  # noqa: E402
from kvbench.kernels.reference import partial_attention  # noqa: E402

MIXED = (8,) * 4 + (6,) * 8 + (5,) * 8 + (4,) * 8 + (3,) * 16 + (2,) * 8 + (1,) * 12


def main() -> None:
    assert not vectors.has_vnni() and not vectors.has_byte_permute()
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 3, 3, 64), torch.randn(2, 3, 200, 64), 1 + torch.randn(2, 3, 200, 64)
    whole = query.double().view(2, 9, 1, 64)
    expected = partial_attention(whole, keys.double(), values.double(), 0.125).output.view(2, 3, 3, 64)
    assert (exact_decode(query, keys, values, 0.125).output - expected).abs().max() < 3e-6
    for dtype in (torch.float16, torch.bfloat16):
        for rank in (64, 38):
            narrow = keys[..., :rank].to(dtype), values.to(dtype)
            expected = partial_attention(whole[..., :rank], *(states.double() for states in narrow), 0.125)
            actual = exact_decode(query[..., :rank], *narrow, 0.125).output
            assert (actual - expected.output.view(2, 3, 3, 64)).abs().max() < 3e-6
    for quantizer in (*(IntegerQuantizer(bits, 64) for bits in (8, 4, 3)), CodebookQuantizer(MIXED, torch.ones(64))):
        stored = [quantizer.encode(states) for states in (keys, values)]
        coded = [kernel_view(quantizer, codes) for codes in stored]
        decoded = [quantizer.decode(codes).double() for codes in stored]
        assert isinstance(coded[0], Coded) and isinstance(coded[1], Coded)
        actual = coded_attention(query, coded[0], coded[1], 200, 0.125).output
        expected = partial_attention(whole, *decoded, 0.125).output.view(2, 3, 3, 64)
        assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()


if __name__ == "__main__":
    main()
