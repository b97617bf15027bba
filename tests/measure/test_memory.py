"""Memory: walked bytes equal predicted ones, and peaks come from a child process that cannot take us down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from driving import Subject, calibrated, subject, token_ids
from fp64 import one_thread

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure import memory_probe
from kvbench.measure.arms import Arm
from kvbench.measure.memory import Memory, as_plain, measure_filled, measure_memory
from kvbench.measure.memory_probe import Request, probe
from kvbench.measure.prompt import exact_prompt
from kvbench.runs.records import MemoryResult

__all__ = ["one_thread"]

SPECS = ("none", "hf", "int:bits=4", "kivi:bits=2", "kvtc:bits=3", "pca:rank=0.5", "snapkv:budget=0.25+int:bits=8")
TOKENS = 300
REQUEST = Request(
    attention="auto",
    model="random:llama",
    compressor="int:bits=4",
    dtype="float32",
    device="cpu",
    threads=1,
    text="pydoc",
    batch=2,
    prompt=200,
    steps=2,
    calibration=None,
)


def arm_of(one: Subject, spec: str) -> Arm:
    parsed = parse(spec)
    statistics = calibrated(one) if parsed.needs_calibration else None
    plan = None if parsed.baseline == "hf" else parsed.fit(one.geometry, statistics)
    return Arm.of(spec, one.model, one.geometry, plan)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("batch", [1, 3])
def test_walked_bytes_are_the_predicted_ones(family: str, spec: str, batch: int):
    found = measure_memory(arm_of(subject(family, torch.float32), spec), token_ids(batch, TOKENS), steps=2)
    assert abs(found.prediction_error) < 0.01 and not found.flagged
    assert (found.tokens, found.batch, found.dtype) == (TOKENS, batch, "float32")
    MemoryResult.model_validate(as_plain(found))


def ratios(found: Memory) -> tuple[float, float, float]:
    return found.ratio_allocated, found.ratio_predicted, found.bits_per_element


def test_ratios_are_against_16_bit_keys_and_values():
    one = subject("llama", torch.float32)
    elements = sum(2 * layer.kv_heads * layer.head_dim for layer in one.geometry.layers)
    for spec in ("none", "hf"):
        found = measure_memory(arm_of(one, spec), token_ids(1, TOKENS), steps=0)
        assert ratios(found) == pytest.approx((0.5, 0.5, 32)), "fp32 takes twice the reference"
        assert found.bytes_per_token == 4 * elements and found.ratio_claimed is None
    half = measure_memory(arm_of(subject("llama", torch.bfloat16), "none"), token_ids(1, TOKENS), steps=0)
    assert ratios(half) == pytest.approx((1, 1, 16)) and half.dtype == "bfloat16"


def test_claimed_ratio_is_the_bodys_and_the_allocated_one_pays_for_everything():
    found = measure_memory(arm_of(subject("llama", torch.float32), "int:bits=4"), token_ids(1, TOKENS), steps=0)
    assert found.body_bits_per_element is not None and 4 < found.body_bits_per_element <= 6
    assert found.ratio_claimed == pytest.approx(16 / found.body_bits_per_element)
    assert found.ratio_allocated < found.ratio_claimed
    assert found.allocated.exact > 0 and found.allocated.payload > 0 and found.allocated.scales > 0


def test_a_body_that_keeps_nothing_claims_no_ratio():
    found = measure_memory(arm_of(subject("llama", torch.float32), "streaming"), token_ids(1, TOKENS), steps=0)
    assert found.ratio_claimed is None and found.body_bits_per_element == 0


def test_bases_are_model_level_and_not_in_the_cache():
    one = subject("llama", torch.float32)
    found = measure_memory(arm_of(one, "pca:rank=0.5,keys=before"), token_ids(1, TOKENS), steps=0)
    assert found.model_level_bytes > 0 and found.rope_table_bytes > 0 and found.allocated.workspace == 0
    assert measure_memory(arm_of(one, "int:bits=4"), token_ids(1, TOKENS), steps=0).model_level_bytes == 0


@pytest.mark.parametrize("spec", SPECS)
def test_a_filled_cache_has_the_same_bytes_as_a_prefilled_one(spec: str):
    one, ids = subject("llama", torch.float32), token_ids(1, TOKENS)
    arm = arm_of(one, spec)
    found = measure_filled(arm, exact_prompt(one.model, one.geometry, ids))
    assert found.peak_prefill_bytes is None
    assert found.allocated == measure_memory(arm, ids, steps=0).allocated


def test_measuring_leaves_the_model_stock():
    one, ids = subject("llama", torch.float32), token_ids(1, 20)
    before = one.model(ids).logits
    measure_memory(arm_of(one, "int:bits=4"), token_ids(1, TOKENS), steps=2)
    assert torch.equal(one.model(ids).logits, before)


# ---- the child process -----------------------------------------------------------------------------------------------


def test_probe_is_a_process_of_its_own_with_peaks():
    found = MemoryResult.model_validate(probe(REQUEST))
    assert (found.tokens, found.batch, found.dtype, found.flagged) == (200, 2, "float32", False)
    assert found.baseline_rss_bytes is not None and found.baseline_rss_bytes > 50 << 20, "an interpreter with torch"
    assert found.peak_prefill_bytes is not None and found.peak_decode_bytes is not None
    one = subject("llama", torch.float32, layers=3)  # random:llama has three
    assert found.allocated.total == measure_memory(arm_of(one, "int:bits=4"), token_ids(2, 200), 0).allocated.total


def child(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let another program stand in for the child."""
    run = subprocess.run
    monkeypatch.setattr(
        memory_probe.subprocess, "run", lambda command, **rest: run([sys.executable, "-c", script], **rest)
    )


def test_bad_input_in_the_child_is_one_line(monkeypatch: pytest.MonkeyPatch):
    child(monkeypatch, "import sys; print('a warning\\nrank is too large', file=sys.stderr); sys.exit(2)")
    with pytest.raises(KvbenchError) as error:
        probe(REQUEST)
    assert str(error.value) == "memory probe of int:bits=4 failed: rank is too large"


def test_a_child_that_breaks_is_one_line_with_its_traceback_as_a_note(monkeypatch: pytest.MonkeyPatch):
    child(monkeypatch, "def deep(): raise ZeroDivisionError('oh')\ndeep()")
    with pytest.raises(RuntimeError) as error:
        probe(REQUEST)
    assert str(error.value) == "memory probe of int:bits=4 failed: ZeroDivisionError: oh"
    assert "in deep" in error.value.__notes__[0]


@pytest.mark.parametrize("script", ["", "import os; os._exit(7)"])
def test_a_child_without_a_result_is_told(monkeypatch: pytest.MonkeyPatch, script: str):
    child(monkeypatch, script)
    with pytest.raises(RuntimeError, match=r"memory probe of int:bits=4 failed: no output, exit status [07]$"):
        probe(REQUEST)


def test_a_killed_child_counts_as_out_of_memory(monkeypatch: pytest.MonkeyPatch):
    child(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(MemoryError, match="killed, most likely for memory"):
        probe(REQUEST)


def test_noise_on_stdout_is_not_taken_for_the_result(monkeypatch: pytest.MonkeyPatch):
    child(monkeypatch, "print('loading…'); print('{\"tokens\": 3}'); print('bye')")
    assert probe(REQUEST) == {"tokens": 3}


def test_a_child_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError, match=r"memory probe of int:bits=4 took longer than 0\.05 s"):
        probe(REQUEST, timeout_s=0.05)


def test_request_survives_json():
    request = Request(**{**vars(REQUEST), "calibration": ("pydoc", 2, 64), "model": str(Path("a b") / "ü")})
    back = Request(**json.loads(json.dumps(vars(request))))
    assert (back.model, list(back.calibration or ())) == (request.model, ["pydoc", 2, 64])
