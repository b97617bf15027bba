from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from whole_record import MEMORY, PROVENANCE, QUALITY, SPEED, TRIAL

from kvbench.errors import KvbenchError, UndecidedError
from kvbench.measure.parts.quality import QualityWorkload
from kvbench.measure.results import Interval
from kvbench.runs import migrations
from kvbench.runs.jsonl import decode_line, encode_line, read_records
from kvbench.runs.records import Failure, Record, checksum
from kvbench.runs.trials import SCHEMA, Workload

FIXTURES = Path(__file__).parent / "fixtures"


def test_id_is_of_the_content(make_trial):
    trial = make_trial()
    assert trial.id == make_trial().id
    assert len(trial.id) == 16
    assert trial.key == "random:llama | int:bits=4 | w"
    longer = trial.workload.model_copy(update={"quality": QualityWorkload(length=2048)})
    changes = [
        {"seed": 1},
        {"weights_sha256": "0"},
        {"code": "0"},
        {"packages": {"torch": "0"}},
        {"dtype": "bfloat16"},
        {"threads": 1},
    ]
    changes += [{"text_sha256": {"essays": "0"}}, {"workload": longer}, {"attention": "reference"}]
    assert len({make_trial(**change).id for change in changes} | {trial.id}) == len(changes) + 1


def test_id_does_not_depend_on_the_order_of_texts(make_trial):
    assert make_trial(text_sha256={"a": "1", "b": "2"}).id == make_trial(text_sha256={"b": "2", "a": "1"}).id


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_survives(value):
    quality = QUALITY.model_copy(update={"kld_max": value, "per_document_kld": (value, 1.0)})
    sealed = Record.of(TRIAL, "ok", PROVENANCE, memory=MEMORY, speed=SPEED, quality=quality)
    back = decode_line(encode_line(sealed)[:-1])
    assert back.quality
    assert repr(back.quality.kld_max) == repr(value)
    assert repr(back.quality.per_document_kld[0]) == repr(value)
    assert back.checksum == sealed.checksum


@given(text=st.text())
def test_any_message_is_recorded(text):
    failed = Record.of(TRIAL, "failed", PROVENANCE, failure=Failure(type="E", message=text))
    assert decode_line(encode_line(failed)[:-1]) == failed
    assert encode_line(failed).count(b"\n") == 1


def test_a_message_with_undecodable_bytes_is_recorded(make_record):
    assert Failure(type="OSError", message=b"/tmp/\xff".decode(errors="surrogateescape")).message == "/tmp/?"


def test_checksum_sees_every_change(make_record):
    line = encode_line(make_record())[:-1]
    for changed in (line.replace(b'"seed":0', b'"seed":1'), line.replace(b'{"checksum":"', b'{"checksum":"0')):
        assert changed != line
        with pytest.raises(ValueError, match=r"checksum|no record"):
            decode_line(changed)


def test_checksum_is_that_of_the_rest(make_record):
    record = make_record()
    fields = json.loads(record.to_json())
    assert record.checksum == checksum(fields)
    assert next(iter(fields)) == "checksum"


def test_an_ok_record_has_all_its_workload_asks_for(make_record):
    record = make_record()
    with pytest.raises(ValidationError, match="quality"):
        Record.of(record.trial, "ok", record.provenance, memory=record.memory, speed=record.speed)
    with pytest.raises(ValidationError, match="failure"):
        Record.of(record.trial, "oom", record.provenance)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Interval(low=2.0, high=1.0),
        lambda: QualityWorkload(length=256, prefix=256),
        lambda: QualityWorkload(documents=0),
        lambda: Workload(name="empty"),
        lambda: Workload(name="a | b", quality=QualityWorkload()),
        lambda: QualityWorkload(lenght=3),
    ],
)
def test_nonsense_is_refused(build):
    with pytest.raises(ValidationError):
        build()


def test_records_are_immutable(make_record):
    with pytest.raises(ValidationError):
        make_record().status = "failed"


@pytest.mark.parametrize("version", range(1, SCHEMA))
def test_records_of_older_schemas_are_read_or_refused_by_name(version):
    file = FIXTURES / f"records-v{version}.jsonl"
    if version in migrations.STEPS:
        assert {record.schema_version for record in read_records(file)} == {SCHEMA}
        return
    why = re.escape(migrations.REFUSED[version])
    with pytest.raises(UndecidedError, match=rf"line 1: a record has schema {version}, .*\({why}\); measure it anew"):
        read_records(file)


def test_migration_goes_step_by_step_and_seals_again(monkeypatch):
    monkeypatch.setattr(migrations, "REFUSED", {})
    monkeypatch.setattr(migrations, "SCHEMA", 3)
    steps = {1: lambda fields: {**fields, "path": "1"}, 2: lambda fields: {**fields, "path": fields["path"] + "2"}}
    monkeypatch.setattr(migrations, "STEPS", steps)
    moved = migrations.migrate({"schema_version": 1, "id": "kept", "checksum": "old"})
    assert (moved["schema_version"], moved["id"], moved["path"]) == (3, "kept", "12")
    assert moved["checksum"] == checksum(moved) != "old"


def test_records_of_a_newer_kvbench_say_upgrade():
    with pytest.raises(KvbenchError, match="upgrade"):
        migrations.migrate({"schema_version": SCHEMA + 1})
    with pytest.raises(ValueError, match="schema_version"):
        migrations.migrate({"schema_version": "one"})
