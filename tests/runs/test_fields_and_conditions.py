"""Records as rows, and conditions on them."""

from __future__ import annotations

import re

import pytest

from kvbench.errors import KvbenchError
from kvbench.runs.conditions import Condition
from kvbench.runs.fields import SHORT, fields_of

ROW = {"bits": 3.5, "kld": 0.008, "compressor": "int:bits=4", "memory.total": 7, "score": None}


def test_a_row_has_every_single_value_once(make_record) -> None:
    record = make_record()
    row = fields_of(record)
    assert {*SHORT} <= {*row} and not {*SHORT.values()} & {*row}
    assert row["bits"] == record.memory.bits_per_element and row["kld"] == record.quality.kld_mean
    assert row["speed.cycle"] == record.speed.cycle and row["status"] == "ok"
    assert not any(isinstance(value, list | tuple | dict) for value in row.values())


def test_a_failed_record_has_its_reason(make_record) -> None:
    row = fields_of(make_record("oom"))
    assert row["failure.message"] == "it broke" and row["bits"] is None


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("bits<4", True),
        ("bits<4 and kld<0.001", False),
        ("bits<3 or kld<0.01", True),
        ("not bits<3", True),
        ("3 <= bits < 3.5", False),
        ("'int' in compressor", True),
        ('compressor == "int:bits=4"', True),
        ("'kivi' not in compressor and (bits != 2 or kld > -1)", True),
        ("memory.total >= 7", True),
        ("score > 0", False),
        ("score <= 0", False),
        ("kld < bits", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert Condition(text, ROW).holds(ROW) == holds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bist<4", "unknown field 'bist'; did you mean 'bits'?"),
        ("memory.totl > 1", "unknown field 'memory.totl'; did you mean 'memory.total'?"),
        ("bits", "cannot read the condition 'bits'"),
        ("bits <", "cannot read the condition"),
        ("", "cannot read the condition"),
        ("bits + 1 < 4", "cannot read the condition"),
        ("__import__('os').getcwd() == 'a'", "cannot read the condition"),
        ("bits is 3", "cannot read the condition"),
        ("(" * 500 + "bits" + ")" * 500, "cannot read the condition"),
    ],
)
def test_what_is_no_condition(text: str, told: str) -> None:
    with pytest.raises(KvbenchError, match=re.escape(told)):
        Condition(text, ROW)


def test_texts_are_not_compared_with_numbers() -> None:
    with pytest.raises(KvbenchError, match="compares a text with a number"):
        Condition("compressor < 4", ROW).holds(ROW)
