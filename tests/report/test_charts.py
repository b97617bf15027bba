"""Charts: what is drawn, and that names and points do not cover each other."""

from __future__ import annotations

import math

import fake_records as fake
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.report.axes import Axis, log_ticks
from kvbench.report.charts import figures
from kvbench.report.figure import Figure
from kvbench.report.groups import grouped
from kvbench.report.labels import place_labels, text_box
from kvbench.runs.records import Record


def drawn(records: list[Record]) -> dict[str, Figure]:
    """By the last part of the name."""
    return {figure.name.rpartition("-")[2]: figure for group in figures(grouped(records)) for figure in group}


def rows(figure: Figure) -> list[dict]:
    """The data of the chart's points."""
    return figure.specification()["data"]["values"]


def without(record: Record, part: str, **changes: object) -> Record:
    return record.model_copy(update={part: getattr(record, part).model_copy(update=changes)})


def test_every_compressor_is_a_point_and_baselines_are_lines():
    charts = drawn([fake.ok(outcome) for outcome in fake.OUTCOMES])
    for figure in charts.values():
        assert {row["name"] for row in rows(figure)} == {outcome.spec for outcome in fake.OUTCOMES[2:]}
    lines = [layer for layer in charts["speed"].specification()["layer"] if layer["mark"]["type"] == "rule"]
    assert [row["name"] for row in lines[0]["data"]["values"]] == ["none", "hf"]


def test_the_frontier_and_the_error_bars_are_those_of_the_records():
    figure = drawn([fake.ok(outcome) for outcome in fake.OUTCOMES])["kld"]
    best = {row["name"] for row in rows(figure) if row["best"]}
    assert best == {"int:bits=8", "kvtc:bits=4", "kvtc:bits=3", "kvtc:bits=2"}
    row = next(row for row in rows(figure) if row["name"] == "kvtc:bits=3")
    assert (row["low"], row["y"], row["high"]) == pytest.approx((0.0167 * 0.78, 0.0167, 0.0167 * 1.22))
    assert row["KLD"] == "0.017 [0.013, 0.020]"
    for name in best:
        assert name in figure.description


def test_what_is_at_the_noise_floor_stands_at_the_lower_edge_and_says_so():
    exact = fake.Outcome("identity", 32.0, 0.0, 1.0, 1.0)
    points = rows(drawn([fake.ok(exact), fake.ok(fake.OUTCOMES[3])])["kld"])
    lowest = min(points, key=lambda row: row["y"])
    assert lowest["name"] == "identity (≤ noise)"
    assert lowest["y"] > 0


def test_without_speed_ups_the_time_per_token_is_drawn():
    untimed = [
        without(fake.ok(outcome), "speed", ratio_to_none=None, ratio_to_none_interval=None)
        for outcome in fake.OUTCOMES[:5]
    ]
    figure = drawn(untimed)["speed"]
    assert figure.description.startswith("Chart: time per output token, ms against")


def test_only_what_was_measured_is_drawn():
    assert set(drawn([fake.ok(fake.OUTCOMES[4], fake.OTHER_DOMAIN)])) == {"kld"}
    assert set(drawn([fake.ok(fake.OUTCOMES[4], fake.BATCH)])) == {"speed"}
    assert drawn([fake.broken("int:bits=4")]) == {}
    assert drawn([fake.ok(fake.OUTCOMES[0]), fake.ok(fake.OUTCOMES[1])]) == {}
    assert drawn([]) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1e-12])
def test_values_that_no_logarithm_takes_do_not_break_a_chart(value):
    odd = without(fake.ok(fake.OUTCOMES[2]), "quality", kld_mean=value, kld_interval=None)
    odd = without(odd, "speed", ratio_to_none=value, ratio_to_none_interval=None)
    for figure in drawn([odd, fake.ok(fake.OUTCOMES[4])]).values():
        assert all(math.isfinite(row["y"]) and row["y"] > 0 for row in rows(figure))


def test_names_are_distinct_and_safe():
    record = fake.ok(fake.OUTCOMES[4], model="Some/Model: 1.5B <x>")
    twin = fake.ok(fake.OUTCOMES[4], model="some-model--1.5b x")
    names = [figure.name for group in figures(grouped([record, twin])) for figure in group]
    assert len(set(names)) == 4
    assert all(character.isalnum() or character in "-." for name in names for character in name)


def test_one_chart_becomes_png_and_svg_and_names_no_address():
    figure = drawn([fake.ok(outcome) for outcome in fake.OUTCOMES])["kld"]
    assert figure.png().startswith(b"\x89PNG")
    assert b"kvtc:bits=3" in figure.svg()
    assert "http" not in str(figure.specification())


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 300)), min_size=1, max_size=12))
def test_names_that_may_be_left_out_never_cover_each_other(points):
    names = [f"kvtc:bits={index}" for index in range(len(points))]
    places = place_labels(points, names, [False] * len(points), 500, 300)
    boxes = [
        text_box(x + place.dx, y + place.dy, name, place.align)
        for (x, y), name, place in zip(points, names, places, strict=True)
        if place
    ]
    for index, box in enumerate(boxes):
        assert all(box.overlap(other) <= 0.1 * box.area for other in boxes[:index])
        assert box.left >= -6 and box.right <= 506


def test_essential_names_are_always_there():
    places = place_labels([(50.0, 50.0)] * 9, ["same"] * 9, [True] * 9, 100, 100)
    assert None not in places


def test_a_lone_point_has_its_name_to_the_right():
    (place,) = place_labels([(50.0, 50.0)], ["pca"], [True], 500, 300)
    assert place is not None and place.align == "left" and place.dx > 0 and place.dy == 0


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8))
def test_an_axis_holds_all_of_its_values(values):
    axis = Axis.over("x", values)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert axis.logarithmic == (max(values) / min(values) >= 6)


@given(st.floats(1e-8, 1e3), st.floats(6, 1e9))
def test_a_logarithmic_axis_has_a_readable_number_of_ticks(low, ratio):
    assert 1 <= len(log_ticks(low, low * ratio)) <= 14
