import torch
from hypothesis import given
from hypothesis import strategies as st

from kvbench.codecs.transforms.ranks import global_ranks, rank_for_energy, uniform_ranks

_spectra = st.lists(
    st.tuples(st.integers(1, 3), st.lists(st.floats(0, 10), min_size=1, max_size=8)), min_size=1, max_size=5
).map(lambda items: [torch.tensor(sorted(v, reverse=True)).double().expand(groups, -1) for groups, v in items])


@given(_spectra, st.floats(0.01, 1))
def test_global_ranks_stay_within_the_budget_and_the_width(spectra, rank):
    ranks = global_ranks(spectra, rank)
    assert all(1 <= kept <= spectrum.shape[1] for kept, spectrum in zip(ranks, spectra, strict=True))
    stored = sum((kept - 1) * len(spectrum) for kept, spectrum in zip(ranks, spectra, strict=True))
    assert stored <= round(rank * sum(spectrum.numel() for spectrum in spectra))


@given(_spectra)
def test_full_rank_is_everything(spectra):
    assert global_ranks(spectra, 1.0) == uniform_ranks(spectra, 1.0) == [spectrum.shape[1] for spectrum in spectra]


def test_global_ranks_share_one_water_level():
    spectra = [torch.tensor([[9.0, 8, 7, 1]]), torch.tensor([[6.0, 2, 2, 2]])]
    assert global_ranks(spectra, 0.5) == [3, 1]
    assert global_ranks(spectra, 0.5, weights=[0.1, 10.0]) == [1, 4]


def test_rank_for_energy_is_the_smallest_that_holds_it():
    spectrum = torch.tensor([[6.0, 3, 1]])
    assert [rank_for_energy(spectrum, energy) for energy in (0.5, 0.6, 0.61, 0.9, 1.0)] == [1, 1, 2, 2, 3]
