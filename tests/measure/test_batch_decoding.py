"""A batch of continuations: every row as if it were alone, whenever the others end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kvbench.cache.one_step import CachesOfOneStep, can_share_a_step
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.batch_decoding import Batch, Stop, decode_batch, decode_batches
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.sampling import SharedNoise

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
            return decode_batch(arm, Batch(arm.new_cache(), ids[rows], stop, pick))

    together = decoded([0, 1, 2, 3, 4])
    assert [len(tokens) for tokens in together] == lengths
    assert together == [decoded([row])[0] for row in range(5)]


TOGETHER = [
    "none",
    "int:bits=4,recent=0,block=8",
    "kivi:bits=2,recent=8,block=8,group=8",
    "ftc:bits=4,recent=0,block=8",
    "ftc:bits=4,frame=bands,recent=0,block=8",
    "pca:rank=0.5,frame=before,recent=8,block=8",
    "xkv:rank=0.5,layers=2,recent=8,block=8",
    "snapkv:budget=0.5,recent=8,block=8+int:bits=8",
    "hf",
]


@pytest.mark.parametrize("spec", TOGETHER)
@pytest.mark.parametrize("mebibytes", [0, 1 << 10])
def test_batches_of_any_lengths_continue_together_as_if_alone(bench: ModelBench, spec: str, mebibytes: int) -> None:
    arm, random = bench.arm(parse(spec), SOURCE), torch.Generator().manual_seed(0)
    prompts = [torch.randint(200, (rows, tokens), generator=random) for rows, tokens in [(2, 60), (1, 33), (3, 90)]]
    stops = [Stop(most, set(), lambda row, tokens, most=most: len(tokens) > most - 9 * row) for most in (5, 30, 24)]

    def batches() -> Iterator[Batch]:
        for index, (ids, stop) in enumerate(zip(prompts, stops, strict=True)):
            cache = arm.new_cache()
            arm.forward(ids[:, :-5], cache)
            yield Batch(cache, ids[:, -5:], stop, label=index)

    with arm.entered():
        alone = [decode_batch(arm, batch) for batch in batches()]
        together = {batch.label: batch.texts for batch in decode_batches(arm, batches(), mebibytes << 20)}
    assert [together[index] for index in range(3)] == alone


def test_rows_of_several_caches_are_read_in_one_step(bench: ModelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    arm, rows, forward = bench.none(), list[int](), Arm.forward

    def counted(self: Arm, ids: torch.Tensor, *given: object, **options: object) -> torch.Tensor:
        rows.append(len(ids))
        return forward(self, ids, *given, **options)  # type: ignore[arg-type]

    def batches() -> Iterator[Batch]:
        for length in (20, 30):
            ids = torch.arange(2 * length).reshape(2, length)
            cache = arm.new_cache()
            forward(arm, ids[:, :-1], cache)
            yield Batch(cache, ids[:, -1:], Stop(6, set()))

    monkeypatch.setattr(Arm, "forward", counted)
    with arm.entered():
        for most, expected in [(1 << 30, [2, 2] + [4] * 5), (0, [2] * 12)]:
            rows.clear()
            assert [len(batch.texts) for batch in decode_batches(arm, batches(), most)] == [2, 2]
            assert rows == expected


def test_padded_caches_do_not_share_a_step(bench: ModelBench) -> None:
    arm, ids = bench.arm(parse("int:bits=4,recent=0,block=8"), SOURCE), torch.arange(40).reshape(2, 20)
    mask = torch.ones_like(ids)
    with arm.entered():
        for padding in (0, 3):
            mask[1, :padding] = 0
            cache = arm.new_cache()
            arm.forward(ids, cache, attention_mask=mask)
            assert can_share_a_step(cache) == (padding == 0)
        with pytest.raises(KvbenchError, match="unpadded caches"):
            CachesOfOneStep([cache, cache])


def test_a_last_token_ends_a_row_and_is_not_part_of_it(bench: ModelBench) -> None:
    arm, ids = bench.none(), torch.arange(40)[None] % 200
    with arm.entered():
        (whole,) = decode_batch(arm, Batch(arm.new_cache(), ids, Stop(20, set())))
        last = whole[7]
        (cut,) = decode_batch(arm, Batch(arm.new_cache(), ids, Stop(20, {last})))
    assert cut == whole[: whole.index(last)]


def test_a_row_whose_logits_are_not_finite_ends_and_the_rest_goes_on(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, ids = bench.none(), torch.arange(3 * 40).reshape(3, 40) % 200
    with arm.entered():
        whole = decode_batch(arm, Batch(arm.new_cache(), ids, Stop(12, set())))
    steps, forward = [], type(arm).forward

    def broken(self: Arm, *given: torch.Tensor, **options: int) -> torch.Tensor:
        steps.append(forward(self, *given, **options))  # type: ignore[arg-type]
        if len(steps) == 5:
            steps[-1][min(1, len(steps[-1]) - 1)] = torch.nan
        return steps[-1]

    monkeypatch.setattr(type(arm), "forward", broken)
    failed = set[int]()
    with arm.entered():
        assert decode_batch(arm, Batch(arm.new_cache(), ids, Stop(12, set(), failed=failed))) == [
            whole[0],
            whole[1][:4],
            whole[2],
        ]
        steps.clear()
        alone = Stop(12, set(), lambda row, tokens: row != 1 and len(tokens) == 2, failed=set())
        made = decode_batch(arm, Batch(arm.new_cache(), ids[:2], alone))
        assert made == [whole[0][:2], whole[1][:4]] and alone.failed == {1}, "the last row, of one that was done before"
        steps.clear()
        with pytest.raises(KvbenchError, match="logits are not finite"):
            decode_batch(arm, Batch(arm.new_cache(), ids, Stop(12, set())))
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
