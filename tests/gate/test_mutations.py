"""The gate against code that is broken on purpose, one thing at a time: it must say 1 each time, and say why."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fp64 import one_thread
from torch import Tensor

from kvbench.cache import layer
from kvbench.cache.attach import Plan
from kvbench.cache.cache import CacheBytes, CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.gate.baseline import Baseline, write_baseline
from kvbench.gate.gate import GateReport, gate
from kvbench.hooks.interception import AttentionCall
from kvbench.hooks.rotary import RotaryTable, Rotator
from kvbench.hooks.rotations import Rotation
from kvbench.kernels import choice as kernels
from kvbench.kernels import decode
from kvbench.kernels.reference import Partial
from kvbench.measure import memory, token_statistics
from kvbench.runs.records import Record
from kvbench.runs.runner import Runner
from kvbench.runs.store import RunStore
from kvbench.runs.suites import parse_suite

__all__ = ["one_thread"]

SPANS = "sinks=2,recent=8,block=8"
SUITE = f"""
name = "small"
models = ["random:llama?layers=2"]
compressors = [
  "none",
  "identity:frame=before,{SPANS}",
  "int:bits=4,{SPANS}",
  "ftc:bits=3,frame=after,{SPANS}",
  "kvtc:bits=3,{SPANS}",
]
[[workload]]
name = "w"
[workload.quality]
text = "pydoc"
calibration_text = "pydoc"
calibration_windows = 2
calibration_length = 48
documents = 1
length = 48
prefix = 24
block = 23
decode = 18
[workload.memory]
prompt = 48
steps = 8
peaks = false
"""
"""What the ci suite measures, in small: exact tensors, codes with scales, level tables in a basis, keys before RoPE."""
TRIALS, RUNS = 5, 4
"""``benchmarks/gate_selftest.py`` runs the real suite twenty times."""

Patch = pytest.MonkeyPatch


class _Deaf:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def measured(folder: Path, threads: int = 1, order: int | None = None) -> list[Record]:
    suite = parse_suite(SUITE, "here")
    if order is not None:
        suite = suite.narrowed(compressors=random.Random(order).sample(suite.compressors, TRIALS))
    return Runner(RunStore(folder), _Deaf(), threads=threads).run(suite)


@pytest.fixture(scope="module", autouse=True)
def nothing_kept() -> Iterator[None]:
    """Baselines on disk are kept by the code on disk, which stays as it is while code in memory is broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVBENCH_KEPT_GIB", "0")
        yield


@pytest.fixture(scope="module")
def baseline(nothing_kept: None, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    folder = tmp_path_factory.mktemp("unbroken")
    torch.set_num_threads(1)
    return write_baseline(measured(folder / "run"), folder / "baseline.json")


def judged(baseline: Baseline, folder: Path) -> GateReport:
    return gate(measured(folder / "run"), baseline)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def with_kernels(patch: Patch, **changes: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Run kernels that ``changes`` make of the real ones, by the name of the function."""
    real = kernels.kernels_for(torch.device("cpu"))
    if real is None:
        pytest.skip("no decode kernels on this machine")
    broken = replace(real, **{name: change(getattr(real, name)) for name, change in changes.items()})
    patch.setattr(decode, "kernels_for", lambda device: broken)


def zeros(kernel: Callable[..., Partial]) -> Callable[..., Partial]:
    def attend(*rest: Any) -> Partial:
        part = kernel(*rest)
        return Partial(torch.zeros_like(part.output), part.lse, part.by)

    return attend


def coded_kernel_returns_zeros(patch: Patch) -> None:
    with_kernels(patch, prepare=lambda prepare: lambda *codes: zeros(prepare(*codes)))


def exact_kernel_returns_zeros(patch: Patch) -> None:
    with_kernels(patch, exact=zeros)


def coded_kernel_leaves_out_the_last_token(patch: Patch) -> None:
    def shorter(prepare: Callable[..., Any]) -> Callable[..., Any]:
        return lambda shape, keys, values, tokens, *rest: prepare(shape, keys, values, tokens - 1, *rest)

    with_kernels(patch, prepare=shorter)


def merge_takes_the_mean(patch: Patch) -> None:
    def mean(merge: Callable[..., Partial]) -> Callable[..., Partial]:
        return lambda parts: replace(merge(parts), output=sum(part.output for part in parts) / len(parts))

    with_kernels(patch, merge=mean)


def kernels_never_run(patch: Patch) -> None:
    patch.setattr(decode, "kernels_for", lambda device: None)


# ---- what kernels are told of the codes ------------------------------------------------------------------------------


def told(patch: Patch, quantizer: type, change: Callable[[Coded], Coded]) -> None:
    real = quantizer.coded  # type: ignore[attr-defined]
    patch.setattr(quantizer, "coded", lambda self, stored: change(real(self, stored)))


def scales_are_of_the_next_token(patch: Patch) -> None:
    def shifted(own: Coded) -> Coded:
        assert own.scale is not None
        scale = torch.empty_strided(own.scale.shape, own.scale.stride(), dtype=own.scale.dtype)
        return replace(own, scale=scale.copy_(own.scale.roll(1, 2)))

    told(patch, IntegerQuantizer, shifted)


def zeros_are_dropped(patch: Patch) -> None:
    told(patch, IntegerQuantizer, lambda own: replace(own, zero=None))


def levels_are_a_twentieth_too_large(patch: Patch) -> None:
    real = CodebookQuantizer.coded
    tables: dict[int, Tensor] = {}

    def coded(self: CodebookQuantizer, stored: Any) -> Coded:
        own = real(self, stored)
        for width, table in own.levels.items():  # type: ignore[union-attr]
            tables.setdefault(width, 1.05 * table)
        return replace(own, levels={width: tables[width] for width in own.levels})  # type: ignore[union-attr]

    patch.setattr(CodebookQuantizer, "coded", coded)


# ---- what is stored --------------------------------------------------------------------------------------------------


def scales_are_rounded_to_8_bits(patch: Patch) -> None:
    real = IntegerQuantizer.decode

    def rounded(self: IntegerQuantizer, stored: Any) -> Tensor:
        scale = stored["scale"].to(torch.float8_e4m3fn).to(torch.float16)
        return real(self, stored | {"scale": scale})

    patch.setattr(IntegerQuantizer, "decode", rounded)


def latents_come_back_rotated_by_one(patch: Patch) -> None:
    real = LinearTransform.inverse
    patch.setattr(LinearTransform, "inverse", lambda self, latents, heads: real(self, latents, heads).roll(1, -1))


def keys_are_rotated_to_the_next_position(patch: Patch) -> None:
    real = RotaryTable.lookup
    patch.setattr(RotaryTable, "lookup", lambda self, at: real(self, (at + 1).clamp_max(len(self.cos) - 1)))


def keys_are_turned_back_from_the_next_position(patch: Patch) -> None:
    real = Rotator.rotation  # what alone a body's keys are turned back by

    def rotation(self: Rotator, slots: Tensor) -> Rotation:
        return real(self, (slots + 1).clamp_max(self.positions.shape[1] - 1))

    patch.setattr(Rotator, "rotation", rotation)


def sinks_are_compressed(patch: Patch) -> None:
    real = CompressedLayer._leave

    def leave(self: CompressedLayer, boundary: int) -> None:
        real(self, boundary)
        assert self.sink_keys is not None
        self.sink_keys = self.sink_keys.to(torch.float8_e4m3fn).to(self.sink_keys.dtype)

    patch.setattr(CompressedLayer, "_leave", leave)


def a_token_of_the_window_is_lost(patch: Patch) -> None:
    real = CompressedLayer._leave

    def leave(self: CompressedLayer, boundary: int) -> None:
        real(self, boundary)
        assert self.tail_values is not None
        self.tail_values.view[:, :, :1] = 0

    patch.setattr(CompressedLayer, "_leave", leave)


def every_token_has_the_scale_of_the_first(patch: Patch) -> None:
    real = IntegerQuantizer.encode

    def encode(self: IntegerQuantizer, latents: Tensor) -> dict[str, Tensor]:
        stored = real(self, latents)
        first = stored["scale"][:, :, :1].expand_as(stored["scale"])
        return stored | {"scale": first.contiguous()}

    patch.setattr(IntegerQuantizer, "encode", encode)


def scales_are_not_stored(patch: Patch) -> None:
    real = IntegerQuantizer.encode

    def encode(self: IntegerQuantizer, latents: Tensor) -> dict[str, Tensor]:
        stored = real(self, latents)
        return {name: stored[name] for name in ("codes", "zero")}

    patch.setattr(IntegerQuantizer, "encode", encode)


# ---- masks -----------------------------------------------------------------------------------------------------------


def a_token_sees_the_next_one(patch: Patch) -> None:
    real = CompressedLayer._parts

    def parts(self: CompressedLayer, query: Tensor, call: AttentionCall, *rest: Any) -> list[Partial]:
        mask = call.mask
        if mask is not None:
            call = replace(call, mask=mask | mask.roll(1, -1))
        return real(self, query, call, *rest)

    patch.setattr(CompressedLayer, "_parts", parts)


def a_block_sees_the_window_one_token_late(patch: Patch) -> None:
    real = CompressedLayer._limits
    patch.setattr(CompressedLayer, "_limits", lambda self, past, query: real(self, past, query) + 1)


# ---- the baseline's path, and arithmetic -----------------------------------------------------------------------------


def none_scales_its_scores_wrongly(patch: Patch) -> None:
    real = layer.exact_attention

    def attention(query: Tensor, keys: Tensor, values: Tensor, scaling: float, *rest: Any) -> Tensor:
        return real(query, keys, values, 1.0005 * scaling, *rest)

    patch.setattr(layer, "exact_attention", attention)


def divergence_is_a_hundred_times_its_reverse(patch: Patch) -> None:
    real = token_statistics.divergence
    patch.setattr(token_statistics, "divergence", lambda before, after: 100 * real(after, before))


# ---- bytes -----------------------------------------------------------------------------------------------------------


def a_copy_of_what_was_encoded_is_kept(patch: Patch) -> None:
    real = CompressedLayer._append

    def append(self: CompressedLayer, keys: Tensor, values: Tensor, *rest: Any) -> None:
        vars(self).setdefault("copies", []).append(keys.clone())
        real(self, keys, values, *rest)

    patch.setattr(CompressedLayer, "_append", append)


def the_walk_forgets_scales(patch: Patch) -> None:
    real = CompressedCache.nbytes

    def nbytes(self: CompressedCache) -> CacheBytes:
        return replace(real(self), scales=0)

    patch.setattr(CompressedCache, "nbytes", nbytes)


def the_prediction_forgets_a_byte(patch: Patch) -> None:
    real = memory.predict_bytes
    patch.setattr(memory, "predict_bytes", lambda *rest: real(*rest) - 1)


def bases_are_not_counted(patch: Patch) -> None:
    patch.setattr(Plan, "model_level_bytes", lambda self: 0)


DISAGREES = "does not agree with scoring the same 18 tokens in blocks"
REFUSED = "cannot carry a compressed cache: with identity codecs the logits differ"
MUTATIONS = [
    (coded_kernel_returns_zeros, DISAGREES),
    (exact_kernel_returns_zeros, REFUSED),
    (coded_kernel_leaves_out_the_last_token, DISAGREES),
    (merge_takes_the_mean, REFUSED),
    (kernels_never_run, "decoded by torch decoded, the baseline by numba int"),
    (scales_are_of_the_next_token, DISAGREES),
    (zeros_are_dropped, DISAGREES),
    (levels_are_a_twentieth_too_large, DISAGREES),
    (scales_are_rounded_to_8_bits, DISAGREES),
    (every_token_has_the_scale_of_the_first, DISAGREES),
    (scales_are_not_stored, "failed: KeyError: 'scale'"),
    (latents_come_back_rotated_by_one, DISAGREES),
    (keys_are_rotated_to_the_next_position, DISAGREES),  # by the tables, which kernels read by themselves
    (keys_are_turned_back_from_the_next_position, REFUSED),
    (sinks_are_compressed, "kld_mean"),
    (a_token_of_the_window_is_lost, REFUSED),
    (a_token_sees_the_next_one, DISAGREES),
    (a_block_sees_the_window_one_token_late, "kld_mean"),
    (none_scales_its_scores_wrongly, "noise_floor_kld"),
    (divergence_is_a_hundred_times_its_reverse, "kld_mean"),
    (a_copy_of_what_was_encoded_is_kept, "allocated_bytes"),
    (the_walk_forgets_scales, "allocated_bytes"),
    (the_prediction_forgets_a_byte, "predicted_bytes"),
    (bases_are_not_counted, "model_level_bytes"),
]


def test_unbroken_code_passes_every_time(baseline: Baseline, tmp_path: Path):
    for run in range(RUNS):  # in any order, by any number of threads
        report = gate(measured(tmp_path / str(run), 1 + run % 2, run), baseline)
        assert (report.exit_code, report.render()) == (0, f"passed: {TRIALS} SAME\n")


@pytest.mark.parametrize(("mutate", "sign"), MUTATIONS, ids=[mutate.__name__ for mutate, _ in MUTATIONS])
def test_broken_code_is_noticed(baseline: Baseline, tmp_path: Path, monkeypatch: Patch, mutate: Any, sign: str):
    mutate(monkeypatch)
    report = judged(baseline, tmp_path)
    text = " ".join(report.render().split())
    assert report.exit_code == 1
    assert any(sign in own for own in (text, *(row.note for row in report.rows)))
