"""A batch of continuations: every row as if it were alone, whenever the others end."""

from __future__ import annotations

import pytest
import torch

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.batch_decoding import SharedNoise, Stop, decode_batch
from kvbench.measure.bench import CalibrationSource, ModelBench

SOURCE = CalibrationSource("essays", 2, 128)


@pytest.fixture(scope="module")
def bench() -> ModelBench:
    return ModelBench("random:llama?context=512", dtype="float64")


@pytest.mark.parametrize("spec", ["none", "hf", "int:bits=4,recent=0,block=8", "pca:rank=0.5,recent=8,block=8"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_that_end_early_leave_the_others_as_they_are(bench: ModelBench, spec: str, temperature: float) -> None:
    arm, ids = bench.arm(parse(spec), SOURCE), torch.arange(5 * 40).reshape(5, 40) % 200
    lengths = [3, 25, 9, 40, 9]

    def decoded(rows: list[int]) -> list[list[int]]:
        stop = Stop(40, set(), lambda row, tokens: len(tokens) >= lengths[rows[row]])

        def pick(logits: torch.Tensor, batch: list[int], step: int) -> torch.Tensor:
            if not temperature:
                return logits.argmax(-1)
            return SharedNoise(temperature, 3)(logits, [rows[row] for row in batch], step)

        with arm.entered():
            return decode_batch(arm, arm.new_cache(), ids[rows], stop, pick)

    together = decoded([0, 1, 2, 3, 4])
    assert [len(tokens) for tokens in together] == lengths
    assert together == [decoded([row])[0] for row in range(5)]


def test_a_last_token_ends_a_row_and_is_not_part_of_it(bench: ModelBench) -> None:
    arm, ids = bench.none(), torch.arange(40)[None] % 200
    with arm.entered():
        (whole,) = decode_batch(arm, arm.new_cache(), ids, Stop(20, set()))
        last = whole[7]
        (cut,) = decode_batch(arm, arm.new_cache(), ids, Stop(20, {last}))
    assert cut == whole[: whole.index(last)]


def test_a_row_whose_logits_are_not_finite_ends_and_the_rest_goes_on(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, ids = bench.none(), torch.arange(3 * 40).reshape(3, 40) % 200
    with arm.entered():
        whole = decode_batch(arm, arm.new_cache(), ids, Stop(12, set()))
    steps, forward = [], type(arm).forward

    def broken(self: Arm, *given: torch.Tensor, **options: int) -> torch.Tensor:
        steps.append(forward(self, *given, **options))  # type: ignore[arg-type]
        if len(steps) == 5:
            steps[-1][min(1, len(steps[-1]) - 1)] = torch.nan
        return steps[-1]

    monkeypatch.setattr(type(arm), "forward", broken)
    failed = set[int]()
    with arm.entered():
        assert decode_batch(arm, arm.new_cache(), ids, Stop(12, set(), failed=failed)) == [
            whole[0],
            whole[1][:4],
            whole[2],
        ]
        steps.clear()
        alone = Stop(12, set(), lambda row, tokens: row != 1 and len(tokens) == 2, failed=set())
        made = decode_batch(arm, arm.new_cache(), ids[:2], alone)
        assert made == [whole[0][:2], whole[1][:4]] and alone.failed == {1}, "the last row, of one that was done before"
        steps.clear()
        with pytest.raises(KvbenchError, match="logits are not finite"):
            decode_batch(arm, arm.new_cache(), ids, Stop(12, set()))
    assert failed == {1}


def test_shared_noise_draws_from_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    drawn = [int(SharedNoise(0.7, seed)(logits, [0], 0)) for seed in range(4000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert torch.allclose(counts, torch.softmax(logits[0] / 0.7, -1), atol=0.03), "four standard errors"


def test_shared_noise_depends_on_row_and_step_alone() -> None:
    noise, logits = SharedNoise(1.0, 5), torch.zeros(3, 500)
    drawn = noise(logits, [4, 7, 9], 2)
    assert noise(logits[:1], [7], 2).item() == drawn[1]
    assert len({int(noise(logits[:1], [7], step)) for step in range(6)}) > 1
