"""Running a suite: every trial ends in a record, failures stay their own, and what is done is never done again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fp64 import one_thread
from kept_kernels import cache_with_kernels

from kvbench.compressors import names
from kvbench.compressors.draft import Draft
from kvbench.compressors.names import ENTRY_POINTS
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.measure import quality as quality_module
from kvbench.measure.parts.capacity import CapacityWorkload
from kvbench.measure.parts.speed import SpeedWorkload
from kvbench.models.random_models import byte_tokenizer
from kvbench.runs import measuring as module
from kvbench.runs import resolve as resolving
from kvbench.runs.records import Record
from kvbench.runs.runner import Runner
from kvbench.runs.store import RunStore
from kvbench.runs.suites import Suite, parse_suite
from kvbench.runs.trials import Trial
from kvbench.texts.splits import documents
from kvbench.texts.windows import windows

__all__ = ["one_thread"]

SUITE = """
name = "tiny"
models = [{models}]
compressors = [{compressors}]
[[workload]]
name = "w"
[workload.quality]
text = "pydoc"
calibration_text = "pydoc"
calibration_windows = 2
calibration_length = 64
documents = {documents}
length = {length}
prefix = 16
block = {block}
[workload.memory]
prompt = 150
steps = 1
peaks = {peaks}
"""
ERRORS = {
    "bug": ZeroDivisionError("over [/nothing]"),
    "refusal": KvbenchError("rank 7 is too large for 4 heads"),
    "memory": MemoryError(),
    "allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "accelerator": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "system": OSError(12, "Cannot allocate memory"),
    "runtime": RuntimeError("std::bad_alloc"),
    "time": TimeoutError("too long"),
    "interrupt": KeyboardInterrupt(),
}


@dataclass(frozen=True)
class Faulty(Part):
    """A plug-in that breaks while it is fitted."""

    name: ClassVar[str] = "faulty"
    family: ClassVar[str] = "quantization"
    roles: ClassVar[tuple[Any, ...]] = ("quantizer",)
    how: str

    def apply(self, draft: Draft) -> None:
        raise ERRORS[self.how]


@dataclass
class Diary:
    """A listener that remembers."""

    events: list[str] = field(default_factory=list)

    def planned(self, trials: Sequence[Trial], finished: int) -> None:
        self.events.append(f"planned {len(trials)}, {finished} done")

    def stage(self, what: str, done: int, total: int) -> None:
        self.events.append(what)

    def started(self, trial: Trial) -> None:
        self.events.append(f"started {trial.compressor}")

    def ended(self, record: Record) -> None:
        self.events.append(f"{record.status} {record.trial.compressor}")

    @property
    def started_specs(self) -> list[str]:
        return [event.removeprefix("started ") for event in self.events if event.startswith("started ")]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    monkeypatch.setattr(names, "plugins", lambda: {"faulty": EntryPoint("faulty", f"{__name__}:Faulty", ENTRY_POINTS)})


def suite(*compressors: str, models: Sequence[str] = ("random:llama",), **changes: object) -> Suite:
    settings = {"documents": 1, "length": 48, "block": 16, "peaks": "false"} | changes
    quoted = {"models": models, "compressors": compressors}
    return parse_suite(SUITE.format(**settings, **{key: str(list(names))[1:-1] for key, names in quoted.items()}), "t")


def run(folder: Path, wanted: Suite, **options: Any) -> tuple[list[Record], Diary]:
    diary = Diary()
    return Runner(RunStore(folder), diary, threads=1, **options).run(wanted), diary


def results(record: Record) -> dict[str, Any]:
    """Everything but when and where it ran."""
    return record.model_dump(exclude={"provenance", "checksum"})


def test_every_trial_gets_a_record_in_the_suites_order(tmp_path: Path):
    models, specs = ("random:llama", "random:gpt2", "random:gemma3"), ("none", "hf", "int:bits=4", "kvtc:bits=3")
    ended, diary = run(tmp_path / "r", suite(*specs, models=models))
    assert [(record.trial.model, record.trial.compressor) for record in ended] == [
        (m, s) for m in models for s in specs
    ]
    assert all(record.status == "ok" and record.quality and record.memory and not record.speed for record in ended)
    assert diary.started_specs == [*specs] * 3
    assert RunStore(tmp_path / "r").status().done == len(ended) == 12
    for record in ended:
        assert record.quality and record.memory and not record.memory.flagged
        assert record.trial.compressor in ("int:bits=4", "kvtc:bits=3") or record.quality.kld_mean < 1e-9


@pytest.mark.parametrize("split", ["test", "development"])
def test_documents_and_prompts_are_of_the_split_that_the_workload_names(tmp_path: Path, split: str):
    wanted = suite("int:bits=4")
    (work,) = wanted.workload
    assert work.quality is not None
    quality = work.quality.model_copy(update={"split": split, "documents": 2})
    speed = SpeedWorkload(prompt=32, steps=32, rounds=1, warmup=0)
    changed = work.model_copy(update={"quality": quality, "speed": speed})
    (record,), _ = run(tmp_path / "r", wanted.model_copy(update={"workload": (changed,)}))
    assert record.quality and record.memory and record.speed
    known = list(documents("pydoc", split)["id"])
    assert list(record.quality.document_ids) == known[:2] and len(record.quality.per_document_kld) == 2
    assert f"{split} pydoc" in record.trial.text_sha256
    other = windows("pydoc", split, byte_tokenizer(), 150, 1).sha256
    assert other in record.trial.text_sha256.values()


def test_prompts_and_baselines_of_an_earlier_run_serve_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepared: list[int] = []
    prepare = quality_module.prepare
    monkeypatch.setattr(quality_module, "prepare", lambda *args: prepared.append(1) or prepare(*args))
    first, _ = run(tmp_path / "a", suite("int:bits=4"))
    second, _ = run(tmp_path / "b", suite("int:bits=4", "int:bits=8"))
    assert prepared == [1] and results(first[0]) == results(second[0])


def test_planning_writes_and_measures_nothing(tmp_path: Path):
    diary = Diary()
    trials = Runner(RunStore(tmp_path / "r"), diary, threads=1).plan(suite("none", "int:bits=4"))
    assert [trial.compressor for trial in trials] == ["none", "int:bits=4"]
    assert not (tmp_path / "r").exists() and not diary.started_specs


def test_a_broken_compressor_is_its_own_failure(tmp_path: Path):
    ended, diary = run(tmp_path / "r", suite("faulty:how=bug", "int:bits=4"))
    failed, ok = ended
    assert (failed.status, ok.status) == ("failed", "ok")
    assert failed.failure is not None and failed.failure.type == "PluginError"
    assert failed.failure.message == "compressor plug-in 'faulty' does not fit: ZeroDivisionError: over [/nothing]"
    assert "in apply" in (failed.failure.traceback or "")
    alone, _ = run(tmp_path / "alone", suite("int:bits=4"))
    assert results(ok) == results(alone[0]), "the failure left traces in the model"
    assert diary.events[-1] == "ok int:bits=4" and "failed faulty:how=bug" in diary.events


@pytest.mark.parametrize(
    ("how", "status", "kind"),
    [
        ("refusal", "failed", "KvbenchError"),
        ("memory", "oom", "MemoryError"),
        ("allocator", "oom", "PluginError"),
        ("accelerator", "oom", "PluginError"),
        ("system", "oom", "PluginError"),
        ("runtime", "oom", "PluginError"),
        ("time", "timeout", "TimeoutError"),
    ],
)
def test_what_went_wrong_is_told_apart(tmp_path: Path, how: str, status: str, kind: str):
    (record,), _ = run(tmp_path / "r", suite(f"faulty:how={how}"))
    assert record.status == status and record.failure is not None and record.failure.type == kind
    assert record.failure.message.endswith(str(ERRORS[how]) or kind)
    assert (record.failure.traceback is None) == (kind != "PluginError")


def test_an_interrupt_is_recorded_and_passed_on(tmp_path: Path):
    wanted = suite("none", "faulty:how=interrupt", "int:bits=4")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r", wanted)
    ended = RunStore(tmp_path / "r").records()
    assert [record.status for record in ended] == ["ok", "interrupted"]
    assert RunStore(tmp_path / "r").status().missing == 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r", wanted)  # no lock is left behind, and the trial is tried again


def test_what_is_finished_is_never_measured_again(tmp_path: Path):
    first, _ = run(tmp_path / "r", suite("none", "int:bits=4"))
    lines = (tmp_path / "r" / "records.jsonl").read_bytes()
    again, diary = run(tmp_path / "r", suite("none", "int:bits=4"))
    assert again == first and not diary.started_specs
    assert "planned 2, 2 done" in diary.events
    assert (tmp_path / "r" / "records.jsonl").read_bytes() == lines
    _, diary = run(tmp_path / "r", suite("none", "int:bits=4", "int:bits=2"))
    assert diary.started_specs == ["int:bits=2"]


def test_failures_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = suite("none", "faulty:how=bug", "faulty:how=memory")
    run(tmp_path / "r", wanted)
    ended, diary = run(tmp_path / "r", wanted)
    assert diary.started_specs == ["faulty:how=bug", "faulty:how=memory"]
    assert [record.status for record in ended] == ["ok", "failed", "oom"], "the latest record counts, once"


def test_changed_code_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = run(tmp_path / "r", suite("none"))
    monkeypatch.setattr(resolving, "code_sha256", lambda *_: "ab" * 32)
    second, diary = run(tmp_path / "r", suite("none"))
    assert diary.started_specs == ["none"] and first[0].id != second[0].id
    assert RunStore(tmp_path / "r").status().expected == 1


def test_two_spellings_of_a_compressor_are_one_trial(tmp_path: Path):
    ended, diary = run(tmp_path / "r", suite("int:bits=4", "int:recent=64,bits=4"))
    assert len(ended) == len(diary.started_specs) == 1


def test_short_dtype_names_do_not_load_the_model_twice(tmp_path: Path):
    ended, diary = run(tmp_path / "r", suite("none", "int:bits=4").narrowed(dtype="bf16"))
    assert ended[0].trial.dtype == "bfloat16" and diary.events.count("loading random:llama") == 1


def test_bad_names_are_refused_before_any_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ModelBench", lambda *_: pytest.fail("loaded a model"))
    for wanted in (suite("none", models=["random:llama", "smolm2"]), suite("none", "pcaa:rank=1")):
        with pytest.raises(KvbenchError, match="did you mean"):
            run(tmp_path / "r", wanted)
    assert not (tmp_path / "r").exists()


def test_a_folder_of_another_suite_is_refused(tmp_path: Path):
    run(tmp_path / "r", suite("none"))
    with pytest.raises(KvbenchError, match="holds suite 'tiny', not 'other'"):
        run(tmp_path / "r", suite("none").model_copy(update={"name": "other"}))


def test_threads_are_part_of_a_trial(tmp_path: Path):
    with pytest.raises(KvbenchError, match="threads must be 1 to 1024, or 0 for torch's own choice; got -1"):
        Runner(RunStore(tmp_path), Diary(), threads=-1)
    one, two = (Runner(RunStore(tmp_path), Diary(), threads=n).plan(suite("none"))[0] for n in (1, 2))
    assert (one.threads, two.threads) == (1, 2) and one.id != two.id


def test_a_probe_that_takes_too_long_is_a_timeout(tmp_path: Path):
    (record,), _ = run(tmp_path / "r", suite("none", peaks="true"), probe_timeout_s=0.05)
    assert record.status == "timeout" and record.failure is not None
    assert record.failure.message == "memory probe of none took longer than 0.05 s"


def test_kill_and_resume_end_where_an_uninterrupted_run_does(tmp_path: Path):
    settings: dict[str, Any] = {"documents": 1, "length": 160, "block": 2, "peaks": "false"}
    specs = ("none", "hf", "int:bits=4", "kvtc:bits=3", "kivi:bits=2", "snapkv:budget=0.5")
    text = SUITE.format(models="'random:llama'", compressors=str(list(specs))[1:-1], **settings)
    (tmp_path / "s.toml").write_text(text)
    folder, records = tmp_path / "killed", tmp_path / "killed" / "records.jsonl"
    command = [sys.executable, "-m", "kvbench", "run", "--threads", "1"]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            [*command, "--suite", str(tmp_path / "s.toml"), "--out", str(folder)], stdout=log, stderr=log
        )
        try:
            while not records.exists() or records.read_bytes().count(b"\n") < 2:
                assert child.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.01)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    kept = records.read_bytes().splitlines(keepends=True)
    done = RunStore(folder).finished_ids()
    assert 2 <= len(done) < len(specs), "killed too late to show anything"

    wanted = parse_suite(text, "t")
    resumed, diary = run(folder, wanted)
    assert diary.started_specs == [spec for spec, record in zip(specs, resumed, strict=True) if record.id not in done]
    assert records.read_bytes().splitlines(keepends=True)[: len(done)] == kept[: len(done)]
    straight, _ = run(tmp_path / "straight", wanted)
    assert [results(record) for record in resumed] == [results(record) for record in straight]


def test_a_finished_capacity_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = """
name = "budgets"
models = ["random:llama"]
compressors = ["none", "int:bits=4"]
[[workload]]
name = "w"
[workload.capacity]
budget = "512KiB"
prompt = 100
steps = 8
rounds = 4
"""
    first, _ = run(tmp_path / "r", parse_suite(text, "t"))
    assert [record.status for record in first] == ["ok", "ok"]
    assert [record.capacity.budget for record in first if record.capacity] == [512 * 1024] * 2
    monkeypatch.setattr(CapacityWorkload, "measure", lambda *_: pytest.fail("measured again"))
    again, diary = run(tmp_path / "r", parse_suite(text.replace('"512KiB"', "524288"), "t"))
    assert again == first and not diary.started_specs
