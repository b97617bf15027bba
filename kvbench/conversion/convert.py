"""``kvbench convert``: a model and a fitted ``mla`` in, a DeepSeek-style checkpoint out.

What lands in the folder was read back by stock transformers, and its logits and its tokens compared, before the folder
got its name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kvbench.cache.attach import Plan
from kvbench.cache.self_test import TOLERANCE, TOLERANCE_IN_16_BIT
from kvbench.calibration.collect import collect
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.methods.mla import Mla
from kvbench.compressors.methods.saved import Saved
from kvbench.conversion.checkpoint import latent_layers, latent_model
from kvbench.conversion.families import require_convertible
from kvbench.conversion.reference import logits_through_codecs
from kvbench.errors import KvbenchError
from kvbench.measure.arm_factory import ArmFactory
from kvbench.measure.bench import CalibrationSource, ModelBench, Report
from kvbench.models.conversion import PROBE
from kvbench.models.saved import read_folder, write_folder
from kvbench.storage.frozen import Frozen
from kvbench.storage.new_folder import new_folder, require_vacant

TOKENS = 64
"""Of the calibration text, that the converted model is compared on."""


class Conversion(Frozen):
    """What was made of what. Elements are what the cache keeps of a token in one layer, before and after.

    ``logits_differ``: the largest difference of the logits of the model in ``folder`` and of the original run through
    ``compressor``, everything compressed, over the largest of these.
    """

    model: str
    compressor: str
    folder: str
    dtype: str
    elements_before: PositiveInt
    kv_lora_rank: PositiveInt
    qk_rope_head_dim: PositiveInt
    logits_differ: NonNegativeFloat

    @property
    def elements(self) -> int:
        """After."""
        return self.kv_lora_rank + self.qk_rope_head_dim


def convert_model(
    model: str,
    spec: str,
    folder: Path,
    source: CalibrationSource,
    dtype: str = "float32",
    device: str = "cpu",
    report: Report = lambda what, done, total: None,
) -> Conversion:
    """Fit ``spec``, an ``mla`` or a saved one, to ``model`` and write the model that it makes to ``folder``.

    It is fitted to all tokens of the calibration text: no cache keeps the first ones exactly here.

    Raises:
        KvbenchError: bad input, or a folder that holds something.
        UnsupportedModelError: DeepSeek's layers cannot say what the model does.
    """
    compressor = parsed(spec)
    require_vacant(folder)
    bench = ModelBench(model, dtype, device, report)
    require_convertible(bench.loaded.model, bench.geometry)
    windows = bench.calibration_windows(source).ids
    plan = ArmFactory.of(bench.loaded).fit(compressor, lambda: _statistics(bench, windows))
    layers = latent_layers(bench.geometry, plan)
    report("converting", 0, 1)
    made = latent_model(bench.loaded.model, layers)
    differences = []

    def build(partial: Path) -> None:
        write_folder(made, bench.loaded.tokenizer, partial)
        report("comparing", 0, 1)
        differences.append(_difference(bench, plan, partial, windows[:1, :TOKENS]))

    new_folder(folder, build)
    return Conversion(
        model=model,
        compressor=str(compressor),
        folder=str(folder),
        dtype=str(bench.geometry.dtype).removeprefix("torch."),
        elements_before=layers[0].geometry.elements_per_token,
        kv_lora_rank=made.config.kv_lora_rank,
        qk_rope_head_dim=made.config.qk_rope_head_dim,
        logits_differ=differences[0],
    )


def parsed(spec: str) -> Compressor:
    """The compressor of ``spec``.

    Raises:
        KvbenchError: it is more or something else than a latent with a RoPE slice.
    """
    compressor = parse(spec)
    others = [part.name for part in compressor.parts if not isinstance(part, Mla | Saved)]
    if others:
        raise KvbenchError(
            f"{others[0]} cannot be written as weights of DeepSeek layers; convert mla alone "
            "(mla:latent=0.5,rope_dims=32,choice=shared), and compress the latents of the converted model"
        )
    return compressor


def _statistics(bench: ModelBench, windows: Tensor) -> Statistics:
    def progress(done: int, total: int) -> None:
        bench.report("calibrating", done, total)

    return collect(bench.loaded.model, bench.geometry, windows, fisher=False, progress=progress, sinks=0)


def _difference(bench: ModelBench, plan: Plan, folder: Path, ids: Tensor) -> float:
    """How far the model in ``folder`` is from the original run through ``plan``, on ``ids`` (1, tokens).

    Raises:
        KvbenchError: too far, or its tokenizer reads otherwise.
    """
    original, dtype = bench.loaded, bench.geometry.dtype
    reloaded, tokenizer = read_folder(folder, dtype)
    if _probed(tokenizer) != _probed(original.tokenizer):
        raise KvbenchError(f"the tokenizer of {original.name} reads otherwise once it is saved; nothing was written")
    ids = ids.to(original.model.device)
    expected = logits_through_codecs(original.model, bench.geometry, plan, ids)
    with torch.no_grad():
        actual = reloaded.eval().to(ids.device)(ids, use_cache=False).logits
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-9))
    if not difference <= TOLERANCE.get(dtype, TOLERANCE_IN_16_BIT):
        raise KvbenchError(
            f"the converted model's logits differ by {difference:.1e} of their range from those of {original.name} "
            "run through the same latents; nothing was written"
        )
    return difference


def _probed(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(PROBE).input_ids)
