"""Healing from beginning to end: it helps, it resumes bit for bit, and what it saves is a compressor like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kept_kernels import cache_with_kernels

from kvbench.compressors.compressor import parse
from kvbench.compressors.methods.saved import PLAN
from kvbench.compressors.plan_file import open_plan
from kvbench.errors import KvbenchError
from kvbench.healing import checkpoint
from kvbench.healing.distil import schedule
from kvbench.healing.heal import CHECKPOINT, HEALED, Healer, Healing, default_folder
from kvbench.healing.request import HealRequest
from kvbench.healing.training import Evaluation, Training, best_of, shares
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.parts import Inputs
from kvbench.measure.parts.memory import MemoryWorkload

SPEC = "pca:rank=0.5,sinks=2,recent=6,block=8"
SOURCE = CalibrationSource("docstrings", 16, 128)
SMALL = {"steps": 12, "rate": 0.03, "every": 4, "batch": 4, "tokens": 192, "sequences": 200, "held_out": 16}
"""Docstrings are installed, and the same for every Python. Of fewer windows or shorter ones the bases learn these, and
lose on others."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelBench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # before the first fixture that trains: numbers are compared bit for bit
        yield ModelBench("random:llama?layers=2")
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def healed(bench: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Healing, Path]:
    folder = tmp_path_factory.mktemp("healed")
    return healer(bench, folder).run(), folder


def healer(bench: ModelBench, folder: Path, spec: str = SPEC, **changes: object) -> Healer:
    request = HealRequest.of(bench, parse(spec), SOURCE, Training.of(**(SMALL | changes)))
    return Healer(bench, parse(spec), request, folder)


def content(folder: Path) -> str:
    """Digest of the numbers of a saved plan."""
    return open_plan(folder / PLAN).content


def test_it_helps_on_documents_it_never_saw(healed: tuple[Healing, Path]) -> None:
    healing, folder = healed
    (rank,) = healing.ranks
    assert rank.kld < 0.9 * rank.kld_before and healing.best_step > 0
    assert [evaluation.step for evaluation in healing.evaluations] == [0, 4, 8, 12] and healing.steps == 12
    assert healing.evaluations[0].klds == (rank.kld_start,) and healing.evaluations[0].trained is None
    assert {path.name for path in folder.iterdir()} == {PLAN, HEALED}


def test_what_was_saved_runs_and_takes_the_same_bytes(bench: ModelBench, healed: tuple[Healing, Path]) -> None:
    healing, folder = healed
    counted = MemoryWorkload(prompt=128, steps=0, peaks=False)
    arms = [bench.arm(parse(spec), SOURCE) for spec in (SPEC, f"saved:path={folder}")]
    before, after = (counted.measure(bench, arm, Inputs("docstrings", "test", SOURCE)) for arm in arms)
    assert after.allocated == before.allocated and after.predicted_bytes == before.predicted_bytes
    assert before.model_level_bytes == healing.fitted_bases_bytes
    assert after.model_level_bytes == healing.ranks[0].bases_bytes <= 2 * before.model_level_bytes
    assert arms[1].plan.spans == parse(SPEC).spans


def test_a_saved_plan_is_healed_further(bench: ModelBench, healed: tuple[Healing, Path], tmp_path: Path) -> None:
    healing, folder = healed
    again = healer(bench, tmp_path / "again", f"saved:path={folder}", steps=4).run()
    assert again.ranks[0].kld_before == pytest.approx(healing.ranks[0].kld, rel=1e-4)
    assert again.request.saved_sha256 and not healing.request.saved_sha256


def test_the_same_request_gives_the_same_numbers(
    bench: ModelBench, healed: tuple[Healing, Path], tmp_path: Path
) -> None:
    assert healer(bench, tmp_path).run().evaluations == healed[0].evaluations
    assert content(tmp_path) == content(healed[1])


@pytest.mark.parametrize("stopped", [1, 6, 8])
def test_an_interrupted_one_goes_on_as_if_nothing_had_been(
    bench: ModelBench,
    healed: tuple[Healing, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: int,
) -> None:
    def report(what: str, done: int, total: int) -> None:
        if what == "healing" and done == stopped:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench, "report", report)
        with pytest.raises(KeyboardInterrupt):
            healer(bench, tmp_path).run()
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT}
    standing, _ = checkpoint.load_checkpoint(tmp_path / CHECKPOINT)
    assert standing.step == (stopped - 1) // 4 * 4, "what is kept is the last evaluation"
    done: list[int] = []
    monkeypatch.setattr(bench, "report", lambda what, step, total: done.append(step) if what == "healing" else None)
    healing = healer(bench, tmp_path).run()
    assert done == list(range(standing.step + 1, 13))
    assert healing.evaluations == healed[0].evaluations and content(tmp_path) == content(healed[1])
    assert healing.seconds > standing.seconds


def test_a_checkpoint_that_is_interrupted_leaves_the_one_before(
    bench: ModelBench, healed: tuple[Healing, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def replace_file(path: Path, data: bytes) -> None:
        if len(written) == 2:
            (path.parent / f".{path.name}.x").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        written.append(data)
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replace_file", replace_file)
        with pytest.raises(KeyboardInterrupt):
            healer(bench, tmp_path).run()
    assert (tmp_path / CHECKPOINT).read_bytes() == written[-1]
    healer(bench, tmp_path).run()
    assert content(tmp_path) == content(healed[1])


@pytest.mark.parametrize("how", ["truncated", "changed", "another kind"])
def test_a_damaged_checkpoint_is_one_line(
    bench: ModelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = tmp_path / CHECKPOINT
    with monkeypatch.context() as patch:
        patch.setattr(Healer, "_save", lambda *given: None)
        healer(bench, tmp_path, steps=1).run()
    data = path.read_bytes()
    damaged = {"truncated": data[: len(data) // 2], "changed": data[:-1] + bytes([data[-1] ^ 1]), "another kind": b"{}"}
    path.write_bytes(damaged[how])
    with pytest.raises(KvbenchError, match=r"^[^\n]*cannot be read [^\n]*; delete it to begin anew$"):
        healer(bench, tmp_path, steps=1).run()


def test_a_finished_one_is_only_read(
    bench: ModelBench, healed: tuple[Healing, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Healer, "_train", lambda *given: pytest.fail("trained again"))
    healing, folder = healed
    assert healer(bench, folder).run() == healing


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": 13}, "steps was 12 there and is 13 now"),
        ({"rate": 0.01}, "rate was 0.03 there and is 0.01 now"),
        ({"held_out": 1}, "held-out was 16 there and is 1 now"),
        ({"ranks": "1,0.5"}, "ranks was 1 there and is 1,0.5 now"),
        ({"spec": "pca:rank=0.25"}, "compressor was pca:rank=0.5,sinks=2,recent=6,block=8 there and is pca:rank=0.25"),
    ],
)
def test_another_request_is_refused_with_what_differs(
    bench: ModelBench, healed: tuple[Healing, Path], changes: dict[str, object], difference: str
) -> None:
    with pytest.raises(KvbenchError) as refused:
        healer(bench, healed[1], **changes).run()
    assert f"holds another healing: {difference}" in str(refused.value) and "--save" in str(refused.value)


def test_nested_ranks_share_their_first_components(bench: ModelBench, tmp_path: Path) -> None:
    whole = SPEC.replace("rank=0.5", "rank=1")
    healing = healer(bench, tmp_path, whole, ranks="0.375,0.75,0.5", steps=24, every=12).run()
    assert [rank.share for rank in healing.ranks] == [0.75, 0.5, 0.375]
    assert [rank.folder for rank in healing.ranks] == [".", "0.5", "0.375"]
    assert all(rank.kld < rank.kld_start for rank in healing.ranks)
    assert sum(rank.kld / rank.kld_before for rank in healing.ranks) < 3, "for all ranks together it is a gain"
    plans = [open_plan(tmp_path / rank.folder / PLAN).plan(bench.geometry) for rank in healing.ranks]
    for layer in plans[0].layers:
        largest, *others = (plan.layers[layer].codec.keys.transform for plan in plans)
        for other in others:
            assert torch.equal(other.encoder, largest.encoder[..., : other.rank])
            assert torch.equal(other.decoder, largest.decoder[:, : other.rank])
        assert [each.rank for each in (largest, *others)] == [24, 16, 12]


@pytest.mark.parametrize(
    ("spec", "changes", "reason"),
    [
        ("int:bits=4", {}, "has no bases"),
        ("snapkv:budget=0.5", {}, "drops tokens"),
        ("pca:rank=1,sinks=2,recent=6,block=8", {}, "loses nothing that could be healed: its KL is"),
        (
            "pca:rank=0.5",
            {"tokens": 96},
            "no token of 96 would be predicted from a compressed one with sinks=4, recent=64 and",
        ),
        (
            SPEC,
            {"tokens": 96, "sequences": 99999},
            "tokens in its calibration split, 9599904 are needed (99999 windows of 96)",
        ),
        (
            SPEC,
            {"tokens": 2047, "sequences": 8, "held_out": 999},
            "documents of at least 2047 tokens in its development split, 999 are",
        ),
        (SPEC, {"tokens": 4096}, "calibration length 4096 needs 4096 tokens, but the context of random:llama"),
        (SPEC, {"rate": 1e30}, "the loss is not finite at step"),
    ],
)
def test_what_cannot_be_healed_is_one_line(
    bench: ModelBench, tmp_path: Path, spec: str, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(KvbenchError, match=r"^[^\n]*$") as refused:
        healer(bench, tmp_path / "f", spec, **changes).run()
    assert reason in str(refused.value)
    assert not (tmp_path / "f" / HEALED).exists()


def test_folders_are_refused_before_anything_is_trained(bench: ModelBench, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KvbenchError, match="is not empty; choose another, or empty it"):
        healer(bench, tmp_path).run()
    with pytest.raises(KvbenchError, match="is a file; choose a folder"):
        healer(bench, tmp_path / "notes.txt").run()
    with pytest.raises(KvbenchError, match=r"must hold no '\+' and no ','"):
        healer(bench, tmp_path / "a+b").run()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_it_is_over_when_nothing_helps_any_more(bench: ModelBench, tmp_path: Path) -> None:
    healing = healer(bench, tmp_path, rate=10.0, every=1, patience=2, steps=50).run()
    assert healing.best_step == 0 and healing.steps == 2 and healing.ranks[0].kld == healing.ranks[0].kld_start


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"held_out": -1}, "held-out must be at least 1, got -1"),
        ({"rate": 0.0}, "rate must be a positive number, got 0"),
        ({"rate": float("nan")}, "rate must be a positive number, got nan"),
        ({"ranks": "0.5,0.5"}, "cannot read ranks '0.5,0.5'; write shares"),
        ({"ranks": "1.5"}, "cannot read ranks"),
        ({"ranks": "half"}, "cannot read ranks 'half'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(KvbenchError) as refused:
        Training.of(**changes)
    assert reason in str(refused.value)


def test_ranks_come_largest_first() -> None:
    assert shares("0.25, 1,0.5") == (1.0, 0.5, 0.25)


def test_the_best_is_the_best_for_all_ranks_alike() -> None:
    klds = [(0.1, 10.0), (0.05, 11.0), (0.2, 5.0), (0.06, 8.0)]
    assert best_of([Evaluation(step=step, klds=each) for step, each in enumerate(klds)]) == 3


def test_the_rate_rises_and_falls() -> None:
    rates = [schedule(step, 200) for step in range(200)]
    assert rates[0] == 0.05 and max(rates) == rates[19] == rates[20] == 1 and 0 < rates[-1] < 1e-3
    assert rates[20:] == sorted(rates[20:], reverse=True) and schedule(0, 1) == 1


def test_a_folder_is_named_after_the_request(bench: ModelBench) -> None:
    request = healer(bench, Path()).request
    assert default_folder(request) == Path("runs/heals/random-llama-layers-2-pca-rank-0.5-sinks-2-recent-6-block-8")
