"""What benchmarks/gpu_decode.py does without a GPU: count bytes, make its table, and say that it cannot measure."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_decode

    return gpu_decode


@pytest.mark.parametrize(
    ("name", "bits"),
    [("int8", 8.25), ("int4, groups of 32", 5), ("latents of half rank, int4", 2.25), ("latents of 3 bits", 3)],
)
def test_bytes_are_those_of_codes_and_scales(bench: ModuleType, name: str, bits: float) -> None:
    device = torch.device("cpu")
    quantizer, rank = bench.quantizers(device)[name]
    stored = bench.encoded(quantizer, 2, 64, rank, 0, device)
    values = 2 * bench.KV_HEADS * 64 * bench.DIM
    assert bench.stored_bytes(stored, stored) == pytest.approx(2 * values * bits / 8, rel=0.02)


def test_the_table_compares_with_the_faster_baseline(bench: ModuleType) -> None:
    slow, fast = bench.BASELINES
    arms = [
        bench.Arm(64, slow, [9.0] * 12, 8_000_000, 0.01),
        bench.Arm(64, fast, [4.0] * 12, 8_000_000, 0.01),
        bench.Arm(64, "int4", [2.0] * 12, 2_000_000, 0.001),
    ]
    text = bench.table(arms, 4e9).splitlines()
    assert len(text) == 5
    assert text[2].startswith("| 64 | sdpa | 9.000 | 0.44 |")
    assert text[4] == "| 64 | int4 | 2.000 | 2.00 | 2.00 to 2.00 | 2 | 1 | 25% | 1e-03 |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would measure")
def test_without_a_gpu_it_says_so_in_one_line(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no CUDA device" in said.err
