"""Peaks come from processes of their own, which get everything fitted and cannot take us down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest
from driving import token_ids
from fp64 import one_thread

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hardware import worker
from kvbench.hardware.worker import Worker
from kvbench.hooks.geometry import probe_geometry
from kvbench.measure import memory_probe
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_memory
from kvbench.measure.memory_probe import check_room, measured, probe
from kvbench.measure.parts.memory import MemoryResult
from kvbench.measure.sensitivity import calibrated
from kvbench.models.loading import LoadedModel, load
from kvbench.texts.windows import windows

__all__ = ["one_thread"]

TINY = "random:llama"
WIDE = "random:llama?layers=4,heads=4,kv_heads=4,head_dim=128"
"""2,000 tokens of it are 31 MiB of keys and values, far above what resident memory is known to."""


@cache
def loaded(name: str) -> LoadedModel:
    return load(name)


def arm_of(spec: str, name: str = TINY) -> Arm:
    model, compressor = loaded(name), parse(spec)
    geometry = probe_geometry(model.model)
    statistics = None
    if compressor.needs_calibration:
        statistics = calibrated(model, geometry, windows("pydoc", "calibration", model.tokenizer, 64, 2))
    plan = None if compressor.stock is not None else compressor.fit(geometry, statistics)
    return Arm.of(spec, model.model, geometry, plan, compressor.stock)


def peaks(memory: MemoryResult) -> tuple[int, int]:
    assert memory.peak_prefill_bytes is not None and memory.peak_decode_bytes is not None
    return memory.peak_prefill_bytes, memory.peak_decode_bytes


def test_the_child_measures_the_plan_that_it_is_given():
    arm, ids = arm_of("ftc:bits=3"), token_ids(2, 200)
    memory = probe(arm, TINY, ids, steps=2)
    MemoryResult.model_validate_json(memory.model_dump_json())
    assert (memory.tokens, memory.batch, memory.dtype, memory.flagged) == (200, 2, "float32", False)
    assert memory.baseline_rss_bytes is not None and memory.baseline_rss_bytes > 50 << 20, "an interpreter with torch"
    here = measure_memory(arm, ids, 2)
    assert (memory.allocated, memory.largest_bytes) == (here.allocated, here.largest_bytes)
    assert memory.model_level_bytes == here.model_level_bytes
    assert min(peaks(memory)) >= memory.allocated.total and memory.peak_prefill_chunked_bytes is None


def test_stock_caches_need_no_plan_and_files_in_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("random", "torch", "kvbench"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    memory = probe(arm_of("hf"), TINY, token_ids(1, 20), steps=0)
    assert (memory.tokens, memory.largest_bytes) == (20, None)


def test_peaks_repeat_whatever_has_run_before_and_hold_the_cache():
    arm, ids = arm_of("none", WIDE), token_ids(1, 2000)
    first = probe(arm, WIDE, ids, steps=2)
    arm_of("ftc:bits=3", WIDE)
    assert peaks(probe(arm, WIDE, ids, steps=2)) == pytest.approx(peaks(first), rel=0.05)
    assert min(peaks(first)) >= first.allocated.total > 30 << 20


def test_a_prompt_in_chunks_has_a_peak_of_its_own():
    arm, ids = arm_of("int:bits=4", WIDE), token_ids(1, 2000)
    memory = probe(arm, WIDE, ids, steps=0, chunk=256)
    assert memory.peak_prefill_chunked_bytes is not None
    assert memory.allocated.total < memory.peak_prefill_chunked_bytes != memory.peak_prefill_bytes


def test_a_machine_that_is_too_small_is_told_before_a_child_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_probe, "available_memory", lambda device: 1 << 20)
    with pytest.raises(MemoryError, match=r"needs at least .* GiB are available; .*peaks = false under") as error:
        probe(arm_of("none", WIDE), WIDE, token_ids(1, 100), steps=0)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(memory_probe, "available_memory", lambda device: 1 << 30)
    check_room(arm_of("none", WIDE), token_ids(1, 100))


# ---- what a child may end as -----------------------------------------------------------------------------------------


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], MemoryResult]]:
    """Let a program stand in for the child: it has ``request`` in hand, and the folder that is named there."""
    workers: list[Worker] = []

    def run(script: str, timeout_s: float = 60) -> MemoryResult:
        lines = ["import os, pathlib, signal, sys, time", "def main():", "    for request in sys.stdin:"]
        lines += ["        folder = pathlib.Path(request.strip())", f"        {script}"]
        monkeypatch.setattr(worker, "START", "\n".join([*lines, "main()"]).replace("{", "{{").replace("}", "}}"))
        workers.append(Worker("", {}))
        monkeypatch.setattr(memory_probe, "CHILD", workers[-1])
        return measured(tmp_path, "memory probe of x", timeout_s)

    yield run
    for each in workers:
        each.stop()


def test_bad_input_in_the_child_is_one_line(child: Callable[[str], MemoryResult]):
    with pytest.raises(KvbenchError) as error:
        child("(folder / 'errors.txt').write_text('a warning\\nthe peak is below'); print(2, flush=True)")
    assert str(error.value) == "memory probe of x failed: the peak is below"


def test_a_child_that_breaks_is_one_line_with_its_traceback_as_a_note(tmp_path: Path):
    with pytest.raises(RuntimeError) as error:
        measured(tmp_path, "memory probe of x", 60)  # there is nothing in the folder
    assert str(error.value).startswith("memory probe of x failed: FileNotFoundError: ")
    assert "in measure" in error.value.__notes__[0]


@pytest.mark.parametrize("script", ["os._exit(7)", "print(7, flush=True)"])
def test_a_child_without_a_result_is_told(child: Callable[[str], MemoryResult], script: str):
    with pytest.raises(RuntimeError, match=r"memory probe of x failed: no output, exit status 7$"):
        child(script)


def test_a_process_that_dies_is_quoted_and_started_anew(child: Callable[[str], MemoryResult], tmp_path: Path):
    with pytest.raises(RuntimeError, match="failed: ZeroDivisionError: oh"):
        child("raise ZeroDivisionError('oh')")
    with pytest.raises(RuntimeError, match="failed: ZeroDivisionError: oh"):
        measured(tmp_path, "memory probe of x", 60)


def test_what_an_earlier_request_said_is_not_quoted(child: Callable[[str], MemoryResult], tmp_path: Path):
    with pytest.raises(RuntimeError, match="failed: oh"):
        child(
            "os.write(2, b'oh\\n') if not list(folder.iterdir()) else 0; (folder / 'x').touch(); print(7, flush=True)"
        )
    with pytest.raises(RuntimeError, match="failed: no output, exit status 7"):
        measured(tmp_path, "memory probe of x", 60)


@pytest.mark.parametrize("script", ["print(-9, flush=True)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_killed_child_counts_as_out_of_memory(child: Callable[[str], MemoryResult], script: str):
    with pytest.raises(MemoryError, match="killed, most likely for memory"):
        child(script)


def test_what_a_library_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    memory = measure_memory(arm_of("none"), token_ids(1, 20), 0)
    (tmp_path / "kept.json").write_text(memory.model_dump_json())
    start = "import sys; sys.path.append(sys.argv[1]); import {module} as child; "
    start += "kept = lambda folder: child.MemoryResult.model_validate_json((folder / 'kept.json').read_text()); "
    start += "child.measure = lambda folder: print('loading', flush=True) or kept(folder); child.main()"
    monkeypatch.setattr(worker, "START", start)
    noisy = Worker("kvbench.measure.memory_child", {})
    monkeypatch.setattr(memory_probe, "CHILD", noisy)
    try:
        assert measured(tmp_path, "memory probe of x", 60) == memory
    finally:
        noisy.stop()


def test_the_child_sees_the_environment_as_it_is_now(
    child: Callable[[str], MemoryResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    script = "(folder / 'errors.txt').write_text(os.environ['KVBENCH_WORD']); print(1, flush=True)"
    for word in ("first", "second"):
        monkeypatch.setenv("KVBENCH_WORD", word)
        with pytest.raises(RuntimeError, match=f"failed: {word}"):
            child(script) if word == "first" else measured(tmp_path, "memory probe of x", 60)


def test_a_child_that_takes_too_long_is_ended(child: Callable[..., MemoryResult], tmp_path: Path):
    with pytest.raises(TimeoutError, match=r"memory probe of x took longer than 0\.5 s"):
        child("(folder / 'pid').write_text(str(os.getpid())); time.sleep(60)", 0.5)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
