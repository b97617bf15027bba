"""Statistics over tokens, against their definitions written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kvbench.measure.parts.quality import LEVELS
from kvbench.measure.token_statistics import TokenScores, token_statistics

VOCABULARY = 30


def distributions(tokens: int, seed: int) -> Tensor:
    logits = torch.randn(tokens, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log_softmax(logits, -1)


def nll(predicted: Tensor, targets: Tensor) -> Tensor:
    return -predicted.gather(1, targets[:, None])[:, 0]


def test_every_statistic_is_its_definition() -> None:
    before, after = distributions(200, 0), distributions(200, 1)
    targets = torch.arange(200) % VOCABULARY
    result = token_statistics([TokenScores.of(before, after, targets)], [nll(before, targets)])
    rows = [*zip(before.tolist(), after.tolist(), targets.tolist(), strict=True)]
    kld = [sum(math.exp(p) * (p - q) for p, q in zip(first, second, strict=True)) for first, second, _ in rows]
    delta_p = [math.exp(second[target]) - math.exp(first[target]) for first, second, target in rows]
    likeliest = [{*np.argsort(first)[-5:]} & {*np.argsort(second)[-5:]} for first, second, _ in rows]
    assert result.kld_standard_error == pytest.approx(np.std(kld, ddof=1) / math.sqrt(200))
    assert result.kld_percentiles == pytest.approx(np.percentile(kld, LEVELS))
    assert result.delta_p_mean == pytest.approx(np.mean(delta_p))
    assert result.delta_p_rms == pytest.approx(math.sqrt(np.mean(np.square(delta_p))))
    assert result.delta_p_percentiles == pytest.approx(np.percentile(delta_p, LEVELS))
    assert result.top5_overlap == pytest.approx(np.mean([len(both) / 5 for both in likeliest]))
    correlation = np.corrcoef([s[t] for _, s, t in rows], [f[t] for f, _, t in rows])[0, 1]
    assert result.nll_correlation == pytest.approx(correlation)


def test_distances_count_from_the_prompt_of_every_document() -> None:
    documents = [distributions(40, 0), distributions(40, 1)]
    targets = torch.zeros(40, dtype=torch.long)
    scores = [TokenScores.of(each, each.roll(1, 0), targets) for each in documents]
    near, far = token_statistics(scores, [score.nll for score in scores]).kld_by_distance
    assert (near.first, near.last, near.tokens) == (1, 32, 64)
    assert (far.first, far.last, far.tokens) == (33, 40, 16)
    assert near.kld_mean == pytest.approx(float(torch.cat([score.kld[:32] for score in scores]).mean()))
    assert far.kld_mean == pytest.approx(float(torch.cat([score.kld[32:] for score in scores]).mean()))


def test_the_same_distributions_have_nothing_to_tell() -> None:
    same, targets = distributions(1, 3), torch.zeros(1, dtype=torch.long)
    result = token_statistics([TokenScores.of(same, same, targets)], [nll(same, targets)])
    assert result.top5_overlap == 1 and result.delta_p_rms == pytest.approx(0)
    assert result.kld_standard_error is None and result.nll_correlation is None, "one token has neither"
