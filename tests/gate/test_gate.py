"""The gate is tested as the thing it guards: quiet on no change, loud on every one."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvbench.cli import main as cli
from kvbench.errors import UndecidedError
from kvbench.gate.baseline import read_baseline, write_baseline
from kvbench.gate.gate import gate
from kvbench.gate.verdicts import Verdict
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore


@pytest.fixture
def results(record):
    return [record("none", kld=0.0), record("int:bits=4"), record("pca:rank=0.5", kld=0.3, perplexity=40.0)]


@pytest.fixture
def path(tmp_path, results):
    write_baseline(results, tmp_path / "baseline.json")
    return tmp_path / "baseline.json"


def edit(path, key, metric, change):
    fields = json.loads(path.read_text())
    entry = fields["entries"][key]
    entry[metric] = change(entry[metric])
    path.write_text(json.dumps(fields))


def test_the_same_results_pass_quietly(path, results):
    report = gate(results, read_baseline(path))
    assert report.exit_code == 0
    assert report.render() == "passed: 3 SAME\n"


def test_noise_within_the_tolerance_passes(path, record, results):
    shaken = [
        record("none", kld=0.0, decoded=9e-11, between=9e-11),
        record("int:bits=4", kld=0.01215, decoded=0.0122, perplexity=29.05, floor=4e-11),
        results[2],
    ]
    assert gate(shaken, read_baseline(path)).exit_code == 0


def test_lossless_is_within_a_few_noise_floors_and_lossy_only_within_its_share(tmp_path, record):
    """An absolute margin of 1e-6 for all once let a KLD of 4e-8 grow to 1e-6."""
    path = tmp_path / "baseline.json"
    write_baseline([record("none", kld=0.0, decoded=1e-11), record("ftc:bits=3", kld=4e-8)], path)

    def verdicts(lossless, lossy):
        found = [record("none", kld=0.0, decoded=lossless), record("ftc:bits=3", kld=lossy)]
        return [row.verdict for row in gate(found, read_baseline(path)).rows]

    assert verdicts(9e-11, 4.05e-8) == [Verdict.SAME, Verdict.SAME]
    assert verdicts(2e-10, 4.2e-8) == [Verdict.WORSE, Verdict.WORSE]
    assert verdicts(0.0, 3.8e-8) == [Verdict.SAME, Verdict.BETTER]
    assert verdicts(0.0, 1e-12) == [Verdict.SAME, Verdict.BETTER]


@pytest.mark.parametrize("known", [True, False])
def test_decoding_that_does_not_agree_with_blocks_fails_whatever_the_baseline_says(path, record, results, known):
    spec = "int:bits=4" if known else "fp8"
    report = gate([*results, record(spec, between=1e-3)], read_baseline(path))
    assert report.exit_code == 1
    (row,) = [row for row in report.rows if row.verdict is Verdict.FAILED]
    assert spec in row.key
    text = " ".join(report.render().split())
    assert "decoding token by token (attended by numba int) does not agree" in row.note
    assert "does not agree with scoring" in text


def test_no_baseline_is_made_of_what_does_not_agree(tmp_path, record):
    with pytest.raises(UndecidedError, match="does not agree with scoring the same 96 tokens in blocks"):
        write_baseline([record(between=1e-3)], tmp_path / "baseline.json")


def test_rounding_between_decoding_and_blocks_is_no_disagreement(path, record, results):
    shaken = [record("none", kld=0.0, decoded=9e-11, between=9e-11), record("int:bits=4", between=1e-4), results[2]]
    assert gate(shaken, read_baseline(path)).exit_code == 0
    assert gate([record("none", kld=0.0, decoded=9e-11, between=2e-10)], read_baseline(path)).exit_code == 1


def test_another_way_of_attending_is_seen(path, record, results):
    report = gate([results[0], record("int:bits=4", attention="torch rebuilt"), results[2]], read_baseline(path))
    assert report.exit_code == 1
    assert "decoded by torch rebuilt, the baseline by numba" in report.rows[1].note


@pytest.mark.parametrize(
    ("numbers", "metrics", "verdict"),
    [
        ({"bytes": 1001}, {"bytes_per_token", "allocated_bytes"}, Verdict.WORSE),
        ({"largest": 1201}, {"largest_bytes"}, Verdict.WORSE),
        ({"predicted": 1161}, {"predicted_bytes"}, Verdict.WORSE),
        ({"model_bytes": 8}, {"model_level_bytes"}, Verdict.WORSE),
        ({"decoded": 0.0125}, {"decode_kld_mean"}, Verdict.WORSE),
        ({"decoded": 0.0115}, {"decode_kld_mean"}, Verdict.BETTER),
        ({"floor": 2e-10}, {"noise_floor_kld"}, Verdict.WORSE),
        ({"bytes": 999}, {"bytes_per_token", "allocated_bytes"}, Verdict.BETTER),
        ({"kld": 0.0125, "decoded": 0.012}, {"kld_mean"}, Verdict.WORSE),
        ({"kld": 0.0115, "decoded": 0.012}, {"kld_mean"}, Verdict.BETTER),
        ({"kld": math.nan, "decoded": 0.012, "block": 0.012, "between": 0.0}, {"kld_mean"}, Verdict.WORSE),
        ({"perplexity": 29.1}, {"perplexity"}, Verdict.WORSE),
        ({"perplexity": math.inf}, {"perplexity"}, Verdict.WORSE),
    ],
)
def test_a_changed_result_fails(path, record, results, numbers, metrics, verdict):
    report = gate([results[0], record("int:bits=4", **numbers), results[2]], read_baseline(path))
    assert report.exit_code == 1
    (row,) = [row for row in report.rows if row.verdict is not Verdict.SAME]
    assert row.verdict is verdict
    assert {name for name, cell in row.cells.items() if cell.verdict is not Verdict.SAME} == metrics
    text = report.render()
    assert "int:bits=4" in text and verdict in text and "pca" not in text


@pytest.mark.parametrize("metric", ["bytes_per_token", "allocated_bytes", "kld_mean", "perplexity"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_an_altered_baseline_is_judged_as_numbers(path, results, metric, factor):
    edit(path, "random:llama | int:bits=4 | w", metric, lambda number: number * factor)
    assert gate(results, read_baseline(path)).exit_code == 1


@pytest.mark.parametrize("step", [-1, 1])
def test_one_byte_is_seen(path, results, step):
    edit(path, "random:llama | none | w", "allocated_bytes", lambda number: number + step)
    report = gate(results, read_baseline(path))
    assert report.exit_code == 1
    assert "1,164" in report.render()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_baseline_is_undecided(tmp_path_factory, path, where):
    cut = tmp_path_factory.mktemp("cut") / "baseline.json"
    text = path.read_text().rstrip()
    cut.write_text(text[: int(where * len(text))])
    with pytest.raises(UndecidedError):
        read_baseline(cut)


def drop_entry(fields):
    del fields["entries"]["random:llama | none | w"]


def drop_entry_and_count(fields):
    drop_entry(fields)
    fields["count"] -= 1


def rename_entry(fields):
    fields["entries"]["other"] = fields["entries"].pop("random:llama | none | w")


def drop_metric(fields):
    del fields["entries"]["random:llama | int:bits=4 | w"]["kld_mean"]


def change_weights(fields):
    fields["entries"]["random:llama | none | w"]["conditions"]["weights"] = "0"


def spoil_number(fields):
    fields["entries"]["random:llama | none | w"]["kld_mean"] = "a lot"


def forget_number(fields):
    fields["entries"]["random:llama | none | w"]["kld_mean"] = math.nan


@pytest.mark.parametrize(
    "damage",
    [
        drop_entry,
        drop_entry_and_count,
        rename_entry,
        drop_metric,
        change_weights,
        spoil_number,
        forget_number,
        lambda fields: fields.pop("checksum"),
        lambda fields: fields.pop("count"),
        lambda fields: fields.update(schema_version=1),
        lambda fields: fields.update(novel=1),
    ],
)
def test_a_damaged_baseline_is_undecided(path, damage):
    fields = json.loads(path.read_text())
    damage(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(UndecidedError) as error:
        read_baseline(path)
    assert error.value.exit_code == 3
    assert "--update" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_baseline_is_undecided(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UndecidedError, match="no baseline"):
            read_baseline(path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UndecidedError, match="schema None"):
        read_baseline(tmp_path / "list.json")


def test_a_baseline_of_an_older_schema_is_refused_by_name_and_made_anew_once_deleted(path, results):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    for use in (read_baseline, lambda old: write_baseline(results, old)):
        with pytest.raises(UndecidedError, match="schema 1, this kvbench reads 2; delete it and make a new one"):
            use(path)
    path.unlink()
    assert write_baseline(results, path) == read_baseline(path)


def test_a_result_that_is_gone_fails(path, results):
    report = gate(results[:2], read_baseline(path))
    assert (report.exit_code, report.rows[2].verdict) == (1, Verdict.GONE)


def test_a_new_result_is_listed(path, record, results):
    report = gate([*results, record("palu:rank=0.5")], read_baseline(path))
    assert report.exit_code == 0
    assert "palu:rank=0.5" in report.render() and "NEW" in report.render()


@pytest.mark.parametrize("compressor", ["int:bits=4", "palu:rank=0.5"])
def test_a_failed_trial_fails(path, failed, results, compressor):
    report = gate([*results, failed(compressor)], read_baseline(path))
    assert report.exit_code == 1
    assert "oom: MemoryError: needed 1 GiB" in report.render()


def test_a_retry_that_succeeds_passes(path, failed, results):
    assert gate([failed("int:bits=4"), *results], read_baseline(path)).exit_code == 0


def test_nothing_measured_is_undecided(path, record):
    assert gate([], read_baseline(path)).exit_code == 3
    assert gate([record("palu:rank=0.5")], read_baseline(path)).exit_code == 3


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "0"}, {"text_sha256": {"essays": "0"}}, {"dtype": "bfloat16"}, {"seed": 1}]
)
def test_other_conditions_are_undecided(path, record, results, change):
    report = gate([*results[:2], record("pca:rank=0.5", kld=0.3, perplexity=40.0, trial=change)], read_baseline(path))
    assert report.exit_code == 3
    assert report.rows[2].verdict is Verdict.INCOMPARABLE


def test_a_regression_beside_other_conditions_is_a_regression(path, record, results):
    mixed = [results[0], record("int:bits=4", kld=1.0), record("pca:rank=0.5", trial={"dtype": "bfloat16"})]
    assert gate(mixed, read_baseline(path)).exit_code == 1


def test_changed_code_is_what_the_gate_compares(path, record, results):
    rewritten = record("int:bits=4", trial={"code": "new"})
    assert gate([*results, rewritten], read_baseline(path)).exit_code == 0


def test_one_key_under_two_conditions_is_undecided(path, record, results):
    with pytest.raises(UndecidedError, match="dtype"):
        gate([*results, record("int:bits=4", trial={"dtype": "bfloat16"})], read_baseline(path))


def test_tolerances_are_edited_by_hand_and_survive_an_update(path, record, results):
    fields = json.loads(path.read_text())
    fields["tolerances"]["perplexity"]["relative"] = 0.1
    fields["entries"]["random:llama | int:bits=4 | w"]["tolerances"] = {"kld_mean": {"relative": 0.5, "absolute": 0}}
    path.write_text(json.dumps(fields))
    shaken = [results[0], record("int:bits=4", kld=0.017, decoded=0.012, perplexity=30.0), results[2]]
    assert gate(shaken, read_baseline(path)).exit_code == 0
    write_baseline(results, path)
    assert gate(shaken, read_baseline(path)).exit_code == 0
    other = [*shaken[:2], record("pca:rank=0.5", kld=0.4, perplexity=40.0)]
    assert gate(other, read_baseline(path)).exit_code == 1


def test_what_was_fitted_starts_with_wider_tolerances_that_a_person_may_narrow(tmp_path, record):
    """Committed on one processor, ``ftc`` failed on another: rounding had given it other axes and widths."""
    path = tmp_path / "baseline.json"
    read = {"text_sha256": {"test pydoc": "a", "calibration pydoc": "b"}}

    def fitted(kld: float, decoded: float) -> Record:
        return record("ftc:bits=3", trial=read, kld=kld, decoded=decoded, block=decoded)

    write_baseline([record("int:bits=4", kld=0.01), fitted(0.01, 0.01)], path)

    def verdicts(*now: Record) -> list[str]:
        return [str(row.verdict) for row in gate(now, read_baseline(path)).rows]

    assert verdicts(record("int:bits=4", kld=0.0101), fitted(0.0107, 0.011)) == ["SAME", "SAME"]
    assert verdicts(record("int:bits=4", kld=0.0107), fitted(0.0120, 0.011)) == ["WORSE", "WORSE"]
    assert verdicts(record("int:bits=4", kld=0.0100), fitted(0.0100, 0.013)) == ["SAME", "WORSE"]
    fields = json.loads(path.read_text())
    del fields["entries"]["random:llama | ftc:bits=3 | w"]["tolerances"]
    path.write_text(json.dumps(fields))
    write_baseline([record("int:bits=4", kld=0.01), fitted(0.01, 0.01)], path)
    assert verdicts(record("int:bits=4", kld=0.01), fitted(0.0107, 0.01)) == ["SAME", "WORSE"]


def test_a_baseline_is_only_made_of_whole_results(tmp_path, record, failed):
    path = tmp_path / "baseline.json"
    for bad in ([failed()], [record(kld=math.nan)], []):
        with pytest.raises(UndecidedError):
            write_baseline(bad, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "no baseline at"),
        (lambda path: path.rename(path.with_name("renamed.json")), "no baseline at"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
    ],
    ids=["missing", "renamed", "truncated", "empty"],
)
def test_a_build_without_its_baseline_ends_undecided(tmp_path, path, results, capsys, damage, told):
    RunStore(tmp_path).append_all(results)
    damage(path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["gate", str(tmp_path), "--baseline", str(path)])
    said = capsys.readouterr()
    assert ended.value.code == 3 and told in said.err and "--update" in said.err and not said.out
