"""Peak memory needs a process of its own: this is that process, and the call that starts it.

``python -m kvbench.measure.memory_probe '<json request>'`` loads the model, prefills and decodes one compressor, and
prints one JSON line. Everything heavy it needs (weights, statistics) is already in the cache folder.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kvbench.attention.kernels import warm_up
from kvbench.attention.reading import Reading
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.memory import as_plain, measure_memory
from kvbench.measure.sensitivity import calibrated
from kvbench.models.geometry import probe_geometry
from kvbench.models.loading import load
from kvbench.texts.splits import Split
from kvbench.texts.windows import windows


@dataclass(frozen=True)
class Request:
    """What the child process measures. ``calibration`` is (text, windows, length), None when not needed."""

    model: str
    compressor: str
    dtype: str
    device: str
    threads: int
    text: str
    batch: int
    prompt: int
    steps: int
    calibration: tuple[str, int, int] | None
    attention: str
    split: Split = "test"


def probe(request: Request, timeout_s: float = 1800) -> dict[str, Any]:
    """Measure in a child process; plain values of :class:`kvbench.measure.memory.Memory`.

    Raises:
        KvbenchError: the child reported bad input.
        MemoryError: the child was killed, most likely for memory.
        RuntimeError: the child broke; its traceback is a note on the error.
        TimeoutError: it took longer than ``timeout_s``.
    """
    command = [sys.executable, "-m", "kvbench.measure.memory_probe", json.dumps(asdict(request))]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"memory probe of {request.compressor} took longer than {timeout_s:g} s") from error
    if child.returncode == -signal.SIGKILL:
        raise MemoryError(f"memory probe of {request.compressor} was killed, most likely for memory")
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if child.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = (child.stderr.strip().splitlines() or [f"no output, exit status {child.returncode}"])[-1]
    failure = f"memory probe of {request.compressor} failed: {reason}"
    if child.returncode == KvbenchError.exit_code:
        raise KvbenchError(failure)
    broken = RuntimeError(failure)
    broken.add_note(child.stderr)
    raise broken


def _measure(request: Request) -> dict[str, Any]:
    torch.set_num_threads(request.threads)
    loaded = load(request.model, getattr(torch, request.dtype), request.device)
    geometry = probe_geometry(loaded.model)
    compressor = parse(request.compressor)
    statistics = None
    if request.calibration is not None:
        text, count, length = request.calibration
        statistics = calibrated(loaded, geometry, windows(text, "calibration", loaded.tokenizer, length, count))
    plan = None if compressor.stock is not None else compressor.fit(geometry, statistics)
    warm_up(loaded.model.device)  # a compiler's memory is not the cache's
    reading = Reading.parse(request.attention)
    arm = Arm.of(request.compressor, loaded.model, geometry, plan, compressor.stock, reading)
    ids = windows(request.text, request.split, loaded.tokenizer, request.prompt, request.batch).ids
    return as_plain(measure_memory(arm, ids.to(request.device), request.steps))


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    try:
        print(json.dumps(_measure(Request(**fields))), flush=True)
    except KvbenchError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
