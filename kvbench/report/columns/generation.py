"""Columns of the generation part: long texts that the model writes through the cache."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.measure.parts.generation import GenerationResult
from kvbench.report.columns.column import Cell, Column, mebibyte_cell, percent, plain
from kvbench.report.columns.quality import BELOW_NOISE
from kvbench.report.numbers import fixed, short
from kvbench.runs.records import Record


def _generation(show: Callable[[GenerationResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.generation) if record.generation else None


def _kld(result: GenerationResult) -> Cell | None:
    if result.kld_mean is None:
        return None
    noise = result.kld_mean <= max(result.noise_floor_kld or 0.0, 0.0)
    return Cell(BELOW_NOISE if noise else short(result.kld_mean), result.kld_mean)


def _beside(value: float, baseline: float) -> Cell:
    return Cell(f"{percent(value)} ({percent(baseline)})", value)


COLUMNS = (
    Column(
        "same\nprefix %",
        "Tokens before the first that differs from the uncompressed cache's text, over that text's tokens: mean over "
        "texts.",
        _generation(lambda result: plain(result.same_prefix, percent)),
        summary=True,
    ),
    Column(
        "first\ndifferent",
        "The first token that differs, counted from 0: median over the texts that do.",
        _generation(lambda result: plain(result.first_divergence, lambda place: f"{place:,.0f}")),
        summary=True,
        importance=8,
    ),
    Column(
        "length\n× none",
        "Tokens generated over those of the uncompressed cache: above 1 the compressed model rambles.",
        _generation(lambda result: plain(result.length_ratio, lambda ratio: fixed(ratio, 2))),
        summary=True,
        importance=7,
    ),
    Column(
        "ended %\n(none)",
        "Share of texts that the model ended itself within the limit; in brackets that of the uncompressed cache.",
        _generation(lambda result: _beside(result.ended, result.baseline_ended)),
        importance=5,
    ),
    Column(
        "repeats %\n(none)",
        "Share of four tokens in a row that stood in the text before; in brackets that of the uncompressed cache.",
        _generation(lambda result: _beside(result.repeated, result.baseline_repeated)),
        importance=4,
    ),
    Column(
        "KLD of its\nown text",
        "Mean KL(uncompressed ‖ compressed) of the next-token distributions along the texts that the uncompressed "
        "cache generated, teacher-forced: what is compressed is what the model wrote.",
        _generation(_kld),
        summary=True,
    ),
    Column(
        "drift\npoints",
        "How much further than the uncompressed cache's the text moves when some words of the prompt are misspelt: "
        "edit distance over the longer text, in points of 100.",
        _generation(lambda result: plain(result.excess_drift, lambda drift: f"{100 * drift:+.1f}")),
        summary=True,
        importance=6,
    ),
    Column(
        "text\nMiB",
        "What the caches of one text take at its end, prompt included.",
        _generation(lambda result: mebibyte_cell(round(result.memory[-1].bytes)) if result.memory else None),
        importance=3,
    ),
    Column(
        "text\nattends",
        "What attended to the stored tokens, read back from the live cache.",
        _generation(lambda result: Cell(result.attention, None)),
        importance=1,
    ),
)
