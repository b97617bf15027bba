"""Columns of the capacity part: the largest batch in a budget, and its tokens a second."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.measure.parts.capacity import BaselineCapacity, CapacityResult
from kvbench.report.columns.column import Cell, Column, mebibyte_cell, milliseconds, plain
from kvbench.report.columns.speed import speed_up
from kvbench.report.numbers import short
from kvbench.runs.records import Record

BASELINES = {"none": "none", IN_16_BIT: "16-bit", "hf": "hf"}
"""Those that have columns, in this order, and how columns call them."""


def _capacity(show: Callable[[CapacityResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.capacity) if record.capacity else None


def _batch(capacity: CapacityResult) -> Cell:
    """With a mark where the workload's ``max_batch`` is the limit."""
    return Cell(f"{capacity.batch:,}{'+' if capacity.capped else ''}", capacity.batch)


def _over(name: str, show: Callable[[BaselineCapacity], Cell | None]) -> Callable[[Record], Cell | None]:
    def cell(capacity: CapacityResult) -> Cell | None:
        baseline = capacity.over(name)
        return None if baseline is None else show(baseline)

    return _capacity(cell)


def _ratio(baseline: BaselineCapacity) -> Cell | None:
    return speed_up(baseline.ratio, baseline.ratio_interval)


BATCH = Column(
    "rows in\nbudget",
    "The largest batch whose cache, walked after the prompt and after every decoded step, stays within the budget "
    "with everything it has allocated and the bases that all rows share. + where the workload's limit on the batch "
    "came first.",
    _capacity(_batch),
    summary=True,
)
TOKENS_PER_S = Column(
    "tokens/s in\nbudget",
    "Tokens a second that this batch decodes, all rows together, over whole block cycles.",
    _capacity(lambda capacity: plain(capacity.tokens_per_s, short)),
    summary=True,
)
OVER = {
    name: Column(
        f"tokens/s\n× {title}",
        f"The same over that of {name} at its own largest batch for the same budget, decoded in the same rounds; a "
        "95 % interval where at least two rounds of each kind, with and without encoding, were timed.",
        _over(name, _ratio),
        summary=True,
        importance=6,
    )
    for name, title in BASELINES.items()
}

LEGEND = "rows in budget: the largest batch by allocated bytes; tokens/s × none: over none at its own largest batch"

COLUMNS = (
    BATCH,
    TOKENS_PER_S,
    *OVER.values(),
    Column(
        "tokens/s\nper GiB",
        "Tokens a second over what the batch takes at most, bases included, in GiB.",
        _capacity(lambda capacity: plain(capacity.tokens_per_s_per_gib, short)),
        summary=True,
        importance=5,
    ),
    Column(
        "budget\nMiB",
        "What caches may take; 1 MiB is 1,048,576 bytes.",
        _capacity(lambda capacity: mebibyte_cell(capacity.budget)),
    ),
    Column(
        "batch MiB\nat most",
        "The most that the cache of the timed batch had allocated after any step, without bases.",
        _capacity(lambda capacity: mebibyte_cell(capacity.largest_bytes)),
    ),
    Column(
        "shared\nMiB",
        "Bases and codebooks, counted once within the budget.",
        _capacity(lambda capacity: mebibyte_cell(capacity.model_level_bytes)),
    ),
    Column(
        "MiB with\na row more",
        "What one more row would have taken at most, with bases: by the bytes of a row, walked.",
        _capacity(lambda capacity: mebibyte_cell(capacity.one_more_bytes)),
    ),
    Column(
        "step\nms",
        "A decode step of the whole batch: the mean over whole block cycles.",
        _capacity(lambda capacity: milliseconds(capacity.step_s)),
    ),
    *(
        Column(
            f"rows of\n{title}",
            f"The largest batch of {name} in the same budget.",
            _over(name, lambda baseline: plain(baseline.batch, lambda rows: f"{rows:,.0f}")),
        )
        for name, title in BASELINES.items()
    ),
    Column(
        "batch\nattends",
        "What attended to the stored tokens of the batch, read back from the live cache.",
        _capacity(lambda capacity: Cell(capacity.attention, None)),
        summary=True,
        importance=1,
    ),
    Column(
        "batch KLD\nof steps",
        "Mean KL(uncompressed ‖ compressed) of the timed steps: none decoded the same tokens in the same rounds.",
        _capacity(lambda capacity: plain(capacity.kld_mean, short)),
    ),
)
