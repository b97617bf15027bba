"""Which records stand together, in which order, and which of them are best."""

from __future__ import annotations

import math

import fake_records as fake
from hypothesis import given
from hypothesis import strategies as st

from kvbench.report.findings import findings
from kvbench.report.groups import grouped, row_mark, why
from kvbench.report.pareto import SAME_BITS, Point, clear_frontier, clearly_beats, frontier
from kvbench.runs.records import Record

COORDINATES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


def changed(record: Record, **trial: object) -> Record:
    """The record of a trial that differs in this."""
    return Record.of(
        record.trial.model_copy(update=trial),
        record.status,
        record.provenance,
        memory=record.memory,
        speed=record.speed,
        quality=record.quality,
    )


@given(COORDINATES)
def test_frontier_holds_exactly_the_points_that_nothing_beats(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    expected = {index for index, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert set(frontier(points)) == expected


POINTS = st.lists(
    st.builds(
        lambda bits, kld, share: Point(bits, kld, kld * (1 - share), kld * (1 + share)),
        st.floats(1, 4),
        st.floats(1e-4, 1),
        st.floats(0, 0.9),
    ),
    max_size=12,
)


@given(POINTS)
def test_a_star_loses_no_tie_within_the_tolerance_and_there_is_always_one(points):
    stars = clear_frontier(points)
    assert {*stars} <= {*frontier([(point.bits, point.kld) for point in points])}
    assert bool(stars) == bool(points)
    for star in stars:
        for other in points:
            same_size = other.bits <= points[star].bits * (1 + SAME_BITS)
            assert not (same_size and other.high < points[star].low)
    for index in {*range(len(points))} - {*stars}:
        assert any(clearly_beats(one, points[index]) or _dominates(one, points[index]) for one in points)


def _dominates(one, other):
    return one.bits <= other.bits and one.kld <= other.kld and (one.bits, one.kld) != (other.bits, other.kld)


def test_a_point_that_is_hair_smaller_and_forty_times_worse_is_no_star():
    """kivi at 5.84 bits with KLD .080 stood on the frontier beside ftc at 5.85 bits with .0019."""
    kivi, ftc = Point(5.84, 0.080, 0.06, 0.1), Point(5.85, 0.0019, 0.0015, 0.0023)
    assert clear_frontier([kivi, ftc]) == [1]
    assert clear_frontier([Point(5.7, 0.080, 0.06, 0.1), ftc]) == [0, 1], "smaller by more than the tolerance"
    assert clear_frontier([kivi, Point(5.85, 0.070, 0.05, 0.09)]) == [0, 1], "not clearly better"


def test_the_tolerance_is_the_solver_s():
    from kvbench.compressors.equal_bytes import TOLERANCE

    assert SAME_BITS == TOLERANCE


def test_the_fewest_bits_are_those_of_the_better_of_two_that_are_as_small():
    kvtc = fake.Outcome("kvtc:bits=4", 4.02, 0.0062, 0.957, 0.81)
    ftc = fake.Outcome("ftc:bits=4", 4.05, 0.0021, 0.97, 0.81)
    found = findings(grouped([fake.ok(kvtc), fake.ok(ftc)])[0])
    assert found[0].answer == "ftc:bits=4"
    assert found[-1].answer == "ftc:bits=4"


def test_a_row_at_its_nearest_size_says_what_was_asked_for():
    record = fake.ok(fake.OUTCOMES[5])
    asked = record.model_copy(update={"solved_for": (2.0, 3.0, 3.97)})
    (group,) = grouped([asked, fake.ok(fake.OUTCOMES[4])])
    assert [remark for remark in group.remarks if remark[0] == "≠"] == [
        "≠ kivi:bits=2: 2 and 3 bits were requested, its smallest setting takes 3.97"
    ]


def test_points_that_are_not_finite_are_never_on_the_frontier():
    assert frontier([(1.0, math.nan), (0.5, math.inf), (2.0, 3.0)]) == [2]


def test_a_group_is_one_model_under_one_workload_and_setting():
    titles = [group.title for group in grouped(fake.a_run())]
    assert titles == [
        f"{fake.SMOLLM2} · essays-2k",
        f"{fake.SMOLLM2} · other-domain",
        f"{fake.SMOLLM2} · batch-8",
        f"{fake.GEMMA} · essays-2k",
    ]
    record = fake.ok(fake.OUTCOMES[3])
    for difference in ({"dtype": "bfloat16"}, {"device": "cuda"}, {"threads": 1}, {"seed": 1}):
        assert len(grouped([record, changed(record, **difference)])) == 2


def test_rows_are_baselines_then_from_many_bits_to_few_then_failures():
    group = grouped(fake.a_run()[::-1])[-1]
    names = [record.trial.compressor for record in group.records]
    assert names[:2] == ["none", "hf"]
    sizes = [record.memory.bits_per_element for record in group.records[2:] if record.memory]
    assert sizes == sorted(sizes, reverse=True)
    assert group.records[-1].status == "failed"


def test_the_frontier_leaves_out_baselines_failures_and_what_is_beaten():
    group = grouped(fake.a_run())[0]
    marked = {record.trial.compressor for record in group.records if row_mark(group, record) == "★"}
    assert marked == {"int:bits=8", "kvtc:bits=4", "kvtc:bits=3", "kvtc:bits=2"}


def test_below_the_noise_floor_fewer_bits_win():
    nearly = fake.Outcome("int:bits=8", 8.5, 1e-12, 1.0, 1.0)
    exactly = fake.Outcome("identity", 32.0, 0.0, 1.0, 1.0)
    group = grouped([fake.ok(nearly), fake.ok(exactly)])[0]
    assert [row_mark(group, record) for record in group.records] == [" ", "★"]


def test_remarks_name_flagged_bytes_several_machines_and_other_texts():
    one, two = fake.ok(fake.OUTCOMES[3]), changed(fake.ok(fake.OUTCOMES[4]), text_sha256={"essays": "00"})
    elsewhere = two.model_copy(update={"provenance": fake.MACHINE.model_copy(update={"hostname_hash": "other"})})
    remarks = " ".join(grouped([one, elsewhere, fake.ok(fake.OUTCOMES[8])])[0].remarks)
    assert "palu:rank=0.5: 3.8% more bytes allocated than predicted" in remarks
    assert "timed on 2 machines" in remarks
    assert "text essays was not the same" in remarks


def test_bytes_beyond_the_prediction_may_be_room_that_growing_buffers_keep():
    whole = fake.ok(fake.OUTCOMES[8])
    in_chunks = changed(whole, memory_limit=1 << 30)
    over = "! palu:rank=0.5: 3.8% more bytes allocated than predicted"
    assert over in grouped([whole])[0].remarks
    assert f"{over}, room that buffers keep as they grow by chunks" in grouped([in_chunks])[0].remarks
    memory = whole.memory.model_copy(update={"predicted_bytes": whole.memory.allocated.total * 9 // 10})
    assert over in grouped([in_chunks.model_copy(update={"memory": memory})])[0].remarks, "more than growth leaves"
    fewer = whole.memory.model_copy(update={"prediction_error": -0.05})
    told = grouped([in_chunks.model_copy(update={"memory": fewer})])[0].remarks
    assert "! palu:rank=0.5: 5.0% fewer bytes allocated than predicted" in told, "room explains no lack"


def test_a_reason_is_one_line_of_bounded_length():
    assert why(fake.broken("x", message="first\n\n  second")) == "RuntimeError: first second"
    assert why(fake.broken("x", message="")) == "RuntimeError"
    assert len(why(fake.broken("x", message="long " * 1000))) < 300
    assert why(fake.ok(fake.OUTCOMES[0])) == ""


def test_findings_name_the_smallest_faithful_the_fastest_and_the_frontier():
    found = {finding.question: finding.answer for finding in findings(grouped(fake.a_run())[0])}
    assert found == {
        "Fewest bits with at least 95% same top-1": "kvtc:bits=4",
        "Fastest decoding": "int:bits=4",
        "Pareto frontier of bits and KLD": "int:bits=8, kvtc:bits=4, kvtc:bits=3, kvtc:bits=2",
    }


def test_findings_say_when_nothing_is_faithful_and_are_silent_about_what_was_not_measured():
    poor = fake.Outcome("int:bits=1", 1.5, 5.0, 0.1, 1.0)
    assert findings(grouped([fake.ok(poor, fake.OTHER_DOMAIN)])[0])[0].answer == "none of these"
    assert [finding.question for finding in findings(grouped([fake.ok(poor, fake.BATCH)])[0])] == ["Fastest decoding"]
    assert findings(grouped([fake.broken("int:bits=4")])[0]) == []


def test_the_setting_says_how_caches_were_read_where_that_was_chosen():
    record = fake.ok(fake.OUTCOMES[2])
    forced = record.model_copy(update={"trial": record.trial.model_copy(update={"attention": "reference"})})
    (auto,), (reference,) = grouped([record]), grouped([forced])
    assert auto.setting.endswith("seed 0") and reference.setting.endswith("seed 0, attention reference")


def test_the_16_bit_cache_is_a_baseline_between_the_two_others():
    outcomes = [fake.OUTCOMES[1], fake.NONE_IN_16_BIT, fake.OUTCOMES[3], fake.OUTCOMES[0]]
    (group,) = grouped([fake.ok(outcome) for outcome in outcomes])
    assert [record.trial.compressor for record in group.records] == ["none", "none:dtype=float16", "hf", "int:bits=4"]
    assert [record.trial.compressor for record in group.compressors] == ["int:bits=4"]
