"""Block cycles: while decoding, tokens leave the exact window a block at a time and are encoded then.

A step without encoding is not what a token costs, so times are means over whole cycles: any ``cycle_of(cache)`` steps
in a row encode as many tokens as they add, wherever in the cycle the prompt left the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from transformers import Cache, QuantizedCache
from transformers.cache_utils import QuantizedLayer

from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.errors import KvbenchError
from kvbench.measure.statistics import PairedRatio

CONFIDENCE = 0.95
METHOD = "ratio of means over whole cycles, t of each stratum"
"""What makes the interval of :func:`speed_up`."""


def cycle_of(cache: Cache) -> int:
    """Steps after which every layer of ``cache`` is where it was between two encodings; 1 where nothing is encoded."""
    if isinstance(cache, QuantizedCache):
        return math.lcm(*(layer.residual_length for layer in _quantized(cache)))
    if not isinstance(cache, CompressedCache):
        return 1
    return math.lcm(*(layer.spans.block for layer in cache.layers if isinstance(layer, CompressedLayer)))


def encoded_tokens(cache: Cache) -> int:
    """Tokens that have left the exact window for good, all layers together; grows in the steps that encode."""
    if isinstance(cache, QuantizedCache):
        return sum(layer.get_seq_length() - _gathered(layer.keys) for layer in _quantized(cache))
    if not isinstance(cache, CompressedCache):
        return 0
    return sum(layer.tail_start for layer in cache.layers if isinstance(layer, CompressedLayer))


def _quantized(cache: QuantizedCache) -> list[QuantizedLayer]:
    return [layer for layer in cache.layers if isinstance(layer, QuantizedLayer)]


def _gathered(keys: Tensor | None) -> int:
    """Exact tokens that a layer of transformers has not quantized yet; its keys have no axes before the first token."""
    return keys.shape[-2] if keys is not None and keys.dim() == 4 else 0


def require_whole_cycles(name: str, cycle: int, steps: int, rounds: int, part: str = "speed") -> None:
    """Refuse timed steps, settings of ``part``, that are no whole number of cycles of the compressor ``name``.

    Raises:
        KvbenchError: they are not; the message names the nearest rounds, or steps, that are.
    """
    timed = steps * rounds
    if timed % cycle == 0:
        return
    least = cycle // math.gcd(cycle, steps)
    fitting = [count for count in (rounds // least * least, -(-rounds // least) * least) if count]
    raise KvbenchError(
        f"{name} encodes every {cycle} tokens, and {rounds} rounds of {steps} steps ({timed}) are no whole number of "
        f"such cycles; set rounds to {' or '.join(map(str, fitting))} under [workload.{part}], or steps to {cycle}"
    )


def encode_s_per_token(steps: Sequence[float], encoded: Sequence[bool]) -> float | None:
    """Seconds that encoding adds to a step on average: the mean of all ``steps`` minus that of those without it.

    ``encoded`` says which steps encoded a block. None where all or none did.
    """
    plain = [step for step, did in zip(steps, encoded, strict=True) if not did]
    if not plain or len(plain) == len(steps):
        return None
    return sum(steps) / len(steps) - sum(plain) / len(plain)


def grew(counts: Sequence[int]) -> list[bool]:
    """Which step encoded, from the :func:`encoded_tokens` before the first step and after each."""
    return [after > before for before, after in pairwise(counts)]


def speed_up(baseline: Sequence[float], candidate: Sequence[float], encodings: Sequence[int]) -> PairedRatio:
    """How many times faster ``candidate`` is than ``baseline``: the ratio of their mean steps over the same rounds.

    Args:
        baseline: mean step (seconds) of each round.
        candidate: the same, of the arm that took turns with it.
        encodings: how many steps of the round encoded a block, of both arms together.

    The 95 % interval treats the ratio as a ratio estimator: residuals baseline − ratio · candidate cancel what both
    arms of a round share. Rounds with and without encoding are strata, for each cycle has its fixed number of both;
    every stratum's share of the half-width has the t quantile of its own rounds (Cochran's approximation to the
    Behrens-Fisher problem, which is conservative). None where a stratum has a single round: nothing is known then of
    how its rounds differ.
    """
    before, after = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    ratio = float(before.sum() / after.sum())
    kinds = np.asarray(encodings)
    half = _half_width(before - ratio * after, kinds)
    if half is None:
        return PairedRatio(ratio, None, None, len(before), METHOD)
    share = half / float(after.mean()) / ratio
    return PairedRatio(ratio, ratio * math.exp(-share), ratio * math.exp(share), len(before), METHOD)


def _half_width(residuals: NDArray[np.float64], kinds: NDArray[np.int_]) -> float | None:
    """Half of the interval of the residuals' mean, stratified by ``kinds``."""
    squares = 0.0
    for kind in np.unique(kinds):
        stratum = residuals[kinds == kind]
        if len(stratum) < 2:
            return None
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(stratum) - 1))
        squares += (quantile * len(stratum) / len(residuals)) ** 2 * float(stratum.var(ddof=1)) / len(stratum)
    return math.sqrt(squares)
