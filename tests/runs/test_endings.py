"""What is written down of a trial that failed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import kvbench
from kvbench.runs.endings import failure_of, status_of
from kvbench.storage.units import byte_count


def failed(work):
    try:
        work()
    except Exception as error:
        return failure_of(error)
    raise AssertionError("it worked")


def test_a_traceback_names_files_but_not_where_they_lie():
    """Results are meant to be published; tracebacks held the paths of the machine."""
    told = failed(lambda: torch.nn.Linear(2, 2)(torch.zeros(3))).traceback
    assert 'File "torch/nn/modules/linear.py", line' in told and "RuntimeError" in told
    assert 'File "kvbench/storage/units.py", line' in failed(lambda: byte_count("much")).traceback
    for place in (Path(torch.__file__).parents[1], Path(kvbench.__file__).parents[1], sys.prefix):
        assert str(place) not in told


def test_of_what_was_expected_there_is_none():
    assert failed(lambda: (_ for _ in ()).throw(MemoryError("no room"))).traceback is None
    assert status_of(RuntimeError("[enforce fail] can't allocate memory")) == "oom"
