"""Peak memory needs a process of its own, in which nothing else has happened: this is the call that starts it.

Everything is fitted and cut here, before; the child (:mod:`kvbench.measure.memory_child`) loads the model, the plan
and the token ids. One child takes the prompt at once, another one in chunks that are compressed in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import kvbench
from kvbench.errors import KvbenchError
from kvbench.hardware.allocator import STEADY
from kvbench.hardware.available_memory import available_memory
from kvbench.measure.arms import Arm
from kvbench.measure.memory import Memory, from_plain
from kvbench.measure.memory_child import Request, pack

START = "import sys; sys.path.append(sys.argv[1]); from kvbench.measure.memory_child import main; main(sys.argv[2])"
"""Where kvbench lies comes last on the path, and the current folder not at all (-P): no file there is imported."""


def probe(arm: Arm, model: str, ids: Tensor, steps: int, chunk: int | None = None, timeout_s: float = 1800) -> Memory:
    """Measure ``arm``, an arm of the registry's ``model``, in fresh processes.

    Args:
        ids: (batch, tokens), the prompt.
        steps: tokens decoded after it.
        chunk: tokens that are prefilled at a time in the second child; none is started where the prompt is no longer.
        timeout_s: seconds, for each child.

    Raises:
        KvbenchError: the child reported bad input or impossible peaks, or the plan cannot be saved.
        MemoryError: there is not enough memory, or the child was killed, most likely for memory.
        RuntimeError: the child broke; its traceback is a note on the error.
        TimeoutError: it took longer than ``timeout_s``.
    """
    check_room(arm, ids)
    with TemporaryDirectory(prefix="kvbench-probe-") as folder:
        pack(arm, ids, Path(folder))
        request = Request(
            folder=folder,
            model=model,
            compressor=arm.name,
            dtype=str(arm.geometry.dtype).removeprefix("torch."),
            device=str(arm.model.device),
            threads=torch.get_num_threads(),
            attention=str(arm.reading),
            steps=steps,
        )
        found = run_child(request, timeout_s)
        if chunk is not None and chunk < ids.shape[1]:
            chunked = run_child(replace(request, chunk=chunk, steps=0), timeout_s)
            found = replace(found, peak_prefill_chunked_bytes=chunked.peak_prefill_bytes)
    return found


def check_room(arm: Arm, ids: Tensor) -> None:
    """Refuse a child that could not but run out of memory: its weights, the prompt and the widest layer's work.

    Raises:
        MemoryError: it needs more than is available; the message says what to do.
    """
    itemsize, (batch, tokens) = arm.geometry.dtype.itemsize, ids.shape
    config = arm.model.config.get_text_config()
    elements = arm.geometry.elements(tokens) + tokens * 3 * config.hidden_size + config.vocab_size
    weights = sum(parameter.numel() * parameter.itemsize for parameter in arm.model.parameters())
    needed, available = weights + batch * elements * itemsize, available_memory(str(arm.model.device))
    if needed > available:
        raise MemoryError(
            f"memory probe of {arm.name} needs at least {needed / 2**30:.1f} GiB for another copy of the weights and "
            f"for {batch} × {tokens} tokens, and {available / 2**30:.1f} GiB are available; shorten the prompt, or set "
            "peaks = false under [workload.memory] to walk the bytes without peaks"
        )


def run_child(request: Request, timeout_s: float) -> Memory:
    """What one child has measured; errors as in :func:`probe`."""
    home = str(Path(kvbench.__file__).parents[1])
    command = [sys.executable, "-P", "-c", START, home, json.dumps(asdict(request))]
    name = f"memory probe of {request.compressor}"
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=os.environ | STEADY
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{name} took longer than {timeout_s:g} s") from error
    if child.returncode == -signal.SIGKILL:
        raise MemoryError(f"{name} was killed, most likely for memory")
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if child.returncode == 0 and lines:
        return from_plain(json.loads(lines[-1]))
    reason = (child.stderr.strip().splitlines() or [f"no output, exit status {child.returncode}"])[-1]
    failure = f"{name} failed: {reason}"
    if child.returncode == KvbenchError.exit_code:
        raise KvbenchError(failure)
    broken = RuntimeError(failure)
    broken.add_note(child.stderr)
    raise broken
