"""Peak memory needs a process of its own, in which nothing else has happened: this is the call that has it measured.

Everything is fitted and cut here, before; the process (:mod:`kvbench.measure.memory_child`) loads the model, the plan
and the token ids.
"""

from __future__ import annotations

import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kvbench.errors import KvbenchError
from kvbench.hardware.allocator import STEADY
from kvbench.hardware.available_memory import available_memory
from kvbench.hardware.worker import Worker
from kvbench.measure.arms import Arm
from kvbench.measure.memory_child import ERRORS, RESULT, ProbeRequest, pack
from kvbench.measure.parts.memory import MemoryResult
from kvbench.measure.parts.part import TIMEOUT_S

CHILD = Worker("kvbench.measure.memory_child", STEADY)


def probe(
    arm: Arm, model: str, ids: Tensor, steps: int, chunk: int | None = None, timeout_s: float = TIMEOUT_S
) -> MemoryResult:
    """Measure ``arm``, an arm of the registry's ``model``, in a fresh process.

    Args:
        ids: (batch, tokens), the prompt.
        steps: tokens decoded after it.
        chunk: tokens that are prefilled at a time for the peak in chunks; not measured where the prompt is no longer.
        timeout_s: seconds.

    Raises:
        KvbenchError: the child reported bad input or impossible peaks, or the plan cannot be saved.
        MemoryError: there is not enough memory, or the child was killed, most likely for memory.
        RuntimeError: the child broke; its traceback is a note on the error.
        TimeoutError: it took longer than ``timeout_s``.
    """
    check_room(arm, ids)
    request = ProbeRequest(
        model=model,
        compressor=arm.name,
        dtype=str(arm.geometry.dtype).removeprefix("torch."),
        device=str(arm.model.device),
        threads=torch.get_num_threads(),
        attention=str(arm.reading),
        steps=steps,
        chunk=chunk,
    )
    with TemporaryDirectory(prefix="kvbench-probe-") as folder:
        pack(request, arm, ids, Path(folder))
        return measured(Path(folder), f"memory probe of {arm.name}", timeout_s)


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


def measured(folder: Path, name: str, timeout_s: float) -> MemoryResult:
    """What a child has measured in ``folder``, where everything was packed; errors as in :func:`probe`."""
    try:
        status = CHILD.run(folder, timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"{name} took longer than {timeout_s:g} s") from error
    if status == -signal.SIGKILL:
        raise MemoryError(f"{name} was killed, most likely for memory")
    result, errors = folder / RESULT, folder / ERRORS
    if status == 0 and result.exists():
        return MemoryResult.model_validate_json(result.read_text())
    said = errors.read_text() if errors.exists() else CHILD.errors()
    reason = (said.strip().splitlines() or [f"no output, exit status {status}"])[-1]
    failure = f"{name} failed: {reason}"
    if status == KvbenchError.exit_code:
        raise KvbenchError(failure)
    broken = RuntimeError(failure)
    broken.add_note(said)
    raise broken
