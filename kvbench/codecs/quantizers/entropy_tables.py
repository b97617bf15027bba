"""Frequencies and levels for entropy coding, by class of standard deviation in steps.

Latents of keys and values follow a logistic density better than a normal or a Laplace one. One table row per quantizer
and class serves every component of every layer; classes are a quarter of an octave apart, which costs under .01 bit.
The rows are what the trellis does to such a source once it knows the rows: iterated from the plain density, they are
the joint optimum of levels, frequencies and choices (Chou, Lookabaugh & Gray 1989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kvbench.codecs.quantizers.rans import (
    CENTRE,
    ESCAPE,
    PRECISION,
    TOKENS,
    StreamLayout,
    Tables,
    quantizers_of,
    search,
)
from kvbench.codecs.quantizers.rate_control import capacity_for

PER_OCTAVE = 4
LOWEST, HIGHEST = -4 * PER_OCTAVE, 3 * PER_OCTAVE
"""Classes: below, a component hardly ever leaves zero; above, raw bits take over."""
ESCAPED_BITS = 16

_SAMPLES = 32_768
_ROUNDS = 5
_PRIOR = 4.0  # samples that the plain density counts for
_SIZES = np.arange(CENTRE - 1)

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EntropyTables:
    """``tables`` by row 2 · (class − LOWEST) + quantizer, and the mean ``rates`` (classes,) in bits per index."""

    tables: Tables
    rates: Vector

    def words(self, deviations: Vector) -> int:
        """Words that a block of components with these standard ``deviations``, in steps, should take."""
        octaves = np.log2(np.maximum(deviations, 2.0 ** (LOWEST / PER_OCTAVE))) * PER_OCTAVE
        rates = np.interp(octaves, np.arange(LOWEST, HIGHEST + 1), self.rates)
        rates += np.maximum(octaves - HIGHEST, 0) / PER_OCTAVE
        return max(capacity_for(TOKENS * rates.sum()), self.least_words(self.layout(deviations)))

    def least_words(self, layout: StreamLayout) -> int:
        """Words that a block of zeros takes."""
        return capacity_for(TOKENS * float((self.tables.prices[layout.rows[:, 0], 0] + layout.shifts).sum())) + 1

    def layout(self, deviations: Vector) -> StreamLayout:
        """How components of these standard ``deviations``, in steps, are coded."""
        lowest = 2.0 ** (LOWEST / PER_OCTAVE)
        classes = np.rint(np.log2(np.maximum(deviations, lowest)) * PER_OCTAVE).astype(np.int64)
        shifts = -np.minimum((HIGHEST - classes) // PER_OCTAVE, 0)
        first = 2 * (classes - shifts * PER_OCTAVE - LOWEST)
        second = first + (shifts == 0)  # half a step is nothing to a bucket of many
        return StreamLayout(np.stack([first, second], 1).astype(np.uint16), shifts)


@lru_cache(maxsize=1)
def entropy_tables() -> EntropyTables:
    """The tables, built on first use in about a second."""
    uniform = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    source = np.log(uniform / (1 - uniform)) * math.sqrt(3) / math.pi
    source = np.random.default_rng(0).permutation(source)
    deviations = 2.0 ** (np.arange(LOWEST, HIGHEST + 1) / PER_OCTAVE)
    trained = [_train((source * deviation).astype(np.float32), deviation) for deviation in deviations]
    concatenated = Tables(*(np.concatenate(arrays) for arrays in zip(*(tables for tables, _ in trained), strict=True)))
    return EntropyTables(concatenated, np.array([rate for _, rate in trained]))


def _train(source: NDArray[np.float32], deviation: float) -> tuple[Tables, float]:
    """Rows of both quantizers for one class, and the mean bits per index."""
    plain = [_plain(deviation, second) for second in (0, 1)]
    tables = _tables(plain)
    components = _SAMPLES // TOKENS
    rows = np.tile(np.array([0, 1], dtype=np.uint16), (components, 1))
    layout = StreamLayout(rows, np.zeros(components, dtype=np.int64))
    indices = np.empty(_SAMPLES, dtype=np.int32)
    bits = 0.0
    for _ in range(_ROUNDS):
        bits, _ = search(source, layout, tables, indices)
        used = quantizers_of(indices)
        tables = _tables([_observed(source, indices, used == second, *plain[second]) for second in (0, 1)])
    return tables, bits / _SAMPLES


def _plain(deviation: float, second: int) -> tuple[Vector, Vector]:
    """By size of index 0…62: the probability of either sign and the middle of the cell, both without a search."""
    middles = np.maximum(_SIZES - 0.5 * second, 0)
    edges = np.append((middles[1:] + middles[:-1]) / 2, middles[-1] + 0.5)
    above = 1 / (1 + np.exp(np.minimum(edges / deviation * math.pi / math.sqrt(3), 700)))  # logistic
    return -np.diff(above, prepend=1 - above[0]), middles


def _observed(
    source: NDArray[np.float32], indices: NDArray[np.int32], mine: NDArray[np.bool_], density: Vector, middles: Vector
) -> tuple[Vector, Vector]:
    """What the search made of ``source``: probabilities and centroids, the plain ones where samples are few."""
    sizes, count = np.minimum(np.abs(indices[mine]), CENTRE - 1), CENTRE - 1
    counts = np.bincount(sizes, minlength=count + 1)[:count]
    sums = np.bincount(sizes, np.abs(source[mine]), minlength=count + 1)[:count]
    sides = np.where(_SIZES > 0, 2, 1)
    chances = (counts / sides + _PRIOR * density) / (mine.sum() + _PRIOR)
    centroids = (sums + _PRIOR * middles) / (counts + _PRIOR)
    centroids[0] = 0
    return chances, centroids


def _tables(rows: list[tuple[Vector, Vector]]) -> Tables:
    """Tables of these (probabilities, levels) by size of index."""
    frequencies = np.array([_frequencies(density) for density, _ in rows])
    starts = frequencies.cumsum(1) - frequencies
    slots = np.array([np.repeat(np.arange(len(row)), row) for row in frequencies]).astype(np.uint8)
    values = np.zeros(frequencies.shape, dtype=np.float32)
    for row, (_, levels) in zip(values, rows, strict=True):
        row[CENTRE + _SIZES], row[CENTRE - _SIZES] = levels, -levels
    prices = np.empty((len(rows), CENTRE), dtype=np.float32)
    escape = PRECISION - np.log2(frequencies[:, ESCAPE:]) + ESCAPED_BITS
    named = frequencies[:, CENTRE : 2 * CENTRE - 1]
    prices[:, CENTRE - 1 :] = escape
    prices[:, : CENTRE - 1] = np.where(named > 0, PRECISION - np.log2(np.maximum(named, 1)), escape)
    return Tables(slots, (starts << 16 | frequencies).astype(np.uint32), values, prices)


def _frequencies(density: Vector) -> NDArray[np.int64]:
    """Frequencies (128,) that sum to 2^PRECISION; what falls below half of the least frequency gets none."""
    rounded = np.rint(density * (1 << PRECISION)).astype(np.int64)
    frequencies = np.zeros(128, dtype=np.int64)
    frequencies[CENTRE + _SIZES], frequencies[CENTRE - _SIZES] = rounded, rounded
    frequencies[ESCAPE] = 1
    frequencies[CENTRE] += (1 << PRECISION) - frequencies.sum()
    return frequencies
