"""The registry of a workload's parts: what goes through it, and what a later part leaves as it is."""

from __future__ import annotations

import pytest
from pydantic import create_model

from kvbench.measure.parts import PARTS
from kvbench.measure.parts.part import HasResults, HasSettings, PartSettings, WorkloadPart, fields_of
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload
from kvbench.storage.frozen import Frozen


class Later(PartSettings):
    """A part that nobody has measured yet."""

    budget: int = 1

    @property
    def in_words(self):
        return "a budget"

    def windows(self, bench, compressor, inputs):
        return {}

    def measure(self, bench, arm, inputs):
        return LaterResult(tokens=self.budget)


class LaterResult(Frozen):
    tokens: int


MORE = PARTS | {"later": WorkloadPart(Later, LaterResult)}


@pytest.mark.parametrize(("base", "kind"), [(HasSettings, "settings"), (HasResults, "result")])
def test_a_later_part_changes_nothing_that_was_written_without_it(base, kind):
    today, later = (create_model("Model", __base__=base, **fields_of(parts, kind)) for parts in (PARTS, MORE))
    assert later().model_dump_json() == today().model_dump_json() == '{"quality":null,"speed":null,"memory":null}'
    assert later.model_validate_json(today().model_dump_json()) == later()


def test_a_later_part_is_written_and_read_where_it_is_measured():
    model = create_model("Model", __base__=HasResults, **fields_of(MORE, "result"))
    measured = model(later=LaterResult(tokens=3))
    assert measured.model_dump()["later"] == {"tokens": 3}
    assert model.model_validate_json(measured.model_dump_json()) == measured


def test_workloads_and_records_have_every_part():
    assert set(PARTS) <= set(Workload.model_fields) and set(PARTS) <= set(Record.model_fields)


def test_parts_stand_in_the_order_in_which_they_are_measured():
    workload = Workload(name="all", **{name: PARTS[name].settings() for name in reversed(PARTS)})
    assert list(workload.parts) == list(PARTS)
    assert all(settings.in_words for settings in workload.parts.values())
