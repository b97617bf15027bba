"""The error check climbs a spec's first knob in steps that the knob takes."""

from __future__ import annotations

from kvbench.compressors.compressor import parse
from kvbench.conformance.checks import _ladder


def test_counts_climb_in_counts() -> None:
    specs = [str(parse(spec)) for spec in _ladder(parse("mla:latent=24,rope_dims=8"))]
    assert [spec.partition(",")[0] for spec in specs] == ["mla:latent=6", "mla:latent=12", "mla:latent=24"]


def test_shares_climb_in_shares() -> None:
    assert list(_ladder(parse("pca:rank=0.3"))) == ["pca:rank=0.25", "pca:rank=0.5", "pca:rank=1"]
