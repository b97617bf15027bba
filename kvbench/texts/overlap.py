"""How much of what is scored was calibrated on: shared runs of tokens, whatever documents they come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RUN = 13
"""Tokens in a run: GPT-3's check for contamination (Brown et al. 2020, appendix C) counts runs of 13 words."""


def overlap(calibration: Tensor, scored: Tensor, run: int = RUN) -> tuple[float, ...]:
    """For each row of ``scored`` (rows, tokens) the share, 0…1, of its runs of tokens that stand in any row of
    ``calibration`` (rows, tokens)."""
    known = np.unique(_runs(calibration, run))
    return tuple(float(np.isin(_runs(row[None], run), known).mean()) if len(row) >= run else 0.0 for row in scored)


def _runs(rows: Tensor, run: int) -> NDArray[np.void]:
    """Every run of every row, as one opaque value each."""
    windows = np.lib.stride_tricks.sliding_window_view(rows.cpu().numpy().astype(np.int32), run, axis=1)
    return np.ascontiguousarray(windows.reshape(-1, run)).view(np.dtype((np.void, 4 * run)))[:, 0]
