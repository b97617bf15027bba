"""Units of training: changes of one change predictions by what compression costs, whatever the scale of states."""

from __future__ import annotations

import pytest
import torch
from driving import calibrated, subject, token_ids
from torch import Tensor

from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.compressors.compressor import parse
from kvbench.healing.bases import Bases
from kvbench.healing.reading import Reading
from kvbench.healing.scales import Seen
from kvbench.healing.watching import watch

GROUPS, WIDTH, RANK = 2, 16, 6


def drawn(largest: float, least: float, seed: int, directions: int) -> Tensor:
    """(1, groups, 8192, width), with deviations from ``largest`` down to ``least`` along random directions."""
    random = torch.Generator().manual_seed(directions)
    axes = torch.linalg.qr(torch.randn(GROUPS, WIDTH, WIDTH, generator=random))[0]
    white = torch.randn(1, GROUPS, 8192, WIDTH, generator=torch.Generator().manual_seed(seed))
    return (white * torch.logspace(0, 1, WIDTH, base=least / largest) * largest) @ axes


def principal(states: Tensor) -> LinearTransform:
    mean = states.mean((0, 2))
    decoder = torch.linalg.svd((states - mean.unsqueeze(-2))[0], full_matrices=False)[2][:, :RANK]
    return LinearTransform(decoder.mT, decoder, mean)


@pytest.mark.parametrize("part", ["encoder", "decoder", "mean"])
@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_a_change_of_one_costs_what_compression_costs(part: str, unit: float) -> None:
    """States vary a thousand times as much along some directions as along others, and matter thirty times as much."""
    states, gradients = drawn(100, 0.1, 0, 1) * unit + 3, drawn(3, 0.1, 1, 2)
    transform, seen = principal(states), Seen()
    lost = states - transform.inverse(transform.forward(states), GROUPS)
    seen.add(transform.centred(states), lost)
    seen.add_gradient(gradients)
    sign = torch.randint(0, 2, getattr(transform, part).shape, generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    change = seen.scale(transform).added(part, sign)
    if part == "encoder":
        moved = transform.centred(states) @ change @ transform.decoder
    elif part == "decoder":
        moved = transform.forward(states) @ change
    else:
        moved = change.unsqueeze(-2).expand_as(states)
    fisher = gradients.mT @ gradients
    costs = [float((each @ fisher * each).mean().sqrt()) for each in (moved, lost)]
    assert 0.5 * costs[1] < costs[0] < 1.5 * costs[1]


def test_a_basis_that_loses_nothing_stays_finite() -> None:
    states = drawn(100, 0.1, 0, 1)
    transform, seen = (
        LinearTransform(*[torch.eye(WIDTH).expand(GROUPS, -1, -1)] * 2, torch.zeros(GROUPS, WIDTH)),
        Seen(),
    )
    seen.add(states, torch.zeros_like(states))
    seen.add_gradient(torch.zeros_like(states))
    scale = seen.scale(transform)
    assert all(bool(each.isfinite().all()) for each in (*scale.encoder, *scale.decoder, scale.mean))


@pytest.mark.parametrize("spec", ["pca:rank=0.5", "palu:rank=0.5,group=1+int:bits=4", "mla:latent=24,rope_dims=8"])
def test_every_healed_basis_has_units(spec: str) -> None:
    one = subject("llama", torch.float32)
    plan = parse(spec.replace("+", ",recent=6+") if "+" in spec else f"{spec},recent=6,block=8").fit(
        one.geometry, lambda: calibrated(one)
    )
    bases = Bases(plan, watch(Reading(one.model, one.geometry, 20, 40), plan, token_ids(2, 96)).scales())
    assert {name.rpartition(".")[0] for name in bases.parameters} == {*bases.scales}
    for parameter in bases.parameters.values():
        parameter.requires_grad_(False).fill_(0.5)
    kept = bases.kept()
    for name in bases.parameters:
        index, side, part = name.split(".")
        now, before = (getattr(each.layers[int(index)].codec.sides[side].transform, part) for each in (kept, plan))
        assert bool(now.isfinite().all()) and not torch.equal(now, before)


@pytest.mark.parametrize("wanted", [None, "a projection"])
def test_weighted_bases_cost_predictions_least(wanted: str | None) -> None:
    """Less than principal components, and than any small change of themselves; what is not wanted is not aimed at."""
    states, gradients = drawn(100, 0.1, 0, 1), drawn(3, 0.1, 1, 2)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)))[0][:, :12]
    target = torch.eye(WIDTH).expand(GROUPS, -1, -1) if wanted is None else (axes @ axes.mT).expand(GROUPS, -1, -1)
    transform, seen = principal(states), Seen()
    seen.add(transform.centred(states), states)
    seen.add_gradient(gradients)
    fisher = gradients.mT @ gradients

    def cost(one: LinearTransform) -> float:
        error = transform.centred(states) @ target - transform.centred(states) @ one.encoder @ one.decoder
        return float((error @ fisher * error).mean())

    weighted = seen.weighted(transform, None if wanted is None else target.double())
    assert weighted.rank == RANK and cost(weighted) < 0.7 * cost(transform)
    random = torch.Generator().manual_seed(4)
    for _ in range(5):
        changed = [
            each + 0.03 * each.norm() / each.numel() ** 0.5 * torch.randn(each.shape, generator=random)
            for each in (weighted.encoder, weighted.decoder)
        ]
        assert cost(LinearTransform(*changed, weighted.mean)) > 0.999 * cost(weighted)
