"""transformers' own caches as baselines: bytes as they are, and one clear line without their packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from driving import feed, subject, token_ids

from kvbench.compressors import stock
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_filled, walk
from kvbench.measure.prompt import exact_prompt

pytestmark = pytest.mark.usefixtures("no_grad")
QUANTIZED = ("hf-quanto", "hf-quanto:bits=2", "hf-hqq", "hf-hqq:bits=2", "hf-hqq:bits=8")
PACKAGES = {"hf-quanto": "optimum-quanto", "hf-hqq": "hqq"}


def arm_of(spec: str, family: str = "llama", dtype: torch.dtype = torch.float32) -> Arm:
    one, parsed = subject(family, dtype), parse(spec)
    assert parsed.stock is not None
    return Arm.of(spec, one.model, one.geometry, None, parsed.stock)


def needs_package(spec: str) -> None:
    package = PACKAGES[spec.partition(":")[0]]
    try:
        version(package)
    except PackageNotFoundError:
        pytest.skip(f"NOT TESTED: {package} (extra hf-quant) is not installed")


def test_hf_is_a_dynamic_cache() -> None:
    arm, ids = arm_of("hf"), token_ids(2, 64)
    cache = arm.new_cache()
    arm.forward(ids, cache)
    allocated = walk(cache)
    assert allocated.exact == allocated.total == 2 * arm.geometry.elements(64) * 4


@pytest.mark.parametrize("spec", QUANTIZED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_cache_takes_what_is_predicted(spec: str, dtype: torch.dtype) -> None:
    """The tensors of quanto pretend to an uncompressed storage; the walk must see through them."""
    needs_package(spec)
    arm = arm_of(spec, dtype=dtype)
    memory = measure_filled(arm, exact_prompt(arm.model, arm.geometry, token_ids(1, 256)).repeat(2), steps=0)
    assert not memory.flagged, (memory.allocated, memory.predicted_bytes)
    bits = parse(spec).parts[0].bits  # type: ignore[attr-defined]
    assert memory.allocated.payload == 2 * arm.geometry.elements(256) * bits // 8
    assert memory.allocated.exact == 0


@pytest.mark.parametrize("package", PACKAGES.values())
def test_a_quantized_cache_loses_less_with_more_bits(package: str) -> None:
    spec = {name: spec for spec, name in PACKAGES.items()}[package]
    needs_package(spec)
    ids, losses = token_ids(1, 140), []
    one = subject("llama", torch.float32)
    exact = feed(one.model, one.stock_cache(), ids, [128, 12])[:, 128:]
    for bits in (2, 4):
        arm = arm_of(f"{spec}:bits={bits}")
        logits = feed(one.model, arm.new_cache(), ids, [128, 12])[:, 128:]
        losses.append(float((logits - exact).square().mean()))
    assert losses[0] > losses[1] > 1e-6


@pytest.mark.parametrize("spec", PACKAGES)
def test_without_the_package_one_line_says_what_to_install(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(stock, "version", missing)
    with pytest.raises(KvbenchError, match=r"needs the package .* pip install 'kvbench\[hf-quant\]'"):
        arm_of(spec).new_cache()


@pytest.mark.parametrize("spec", ["hf-quanto", "hf-hqq"])
def test_sliding_windows_are_refused_in_one_line(spec: str) -> None:
    needs_package(spec)
    with pytest.raises(KvbenchError, match="only full attention layers"):
        arm_of(spec, "gemma3").new_cache()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf-quanto:bits=8", "bits=8 is not one of 2, 4"),
        ("hf-hqq:bits=5", "bits=5 is not one of 2, 4, 8"),
        ("hf-quanto:residual=0", "at least 1 token"),
        ("hf-quanto+int:bits=4", "is a baseline"),
    ],
)
def test_nonsense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(KvbenchError, match=message):
        parse(spec)
