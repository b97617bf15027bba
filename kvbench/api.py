"""The Python face of kvbench: attach a compressor to a loaded model, or run a suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.cache.attach import CompressedModel
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.compressor import Compressor, parse
from kvbench.errors import KvbenchError
from kvbench.measure.arm_factory import ArmFactory
from kvbench.measure.sensitivity import calibrated, collected
from kvbench.models.loading import LoadedModel
from kvbench.runs.progress import RunProgress
from kvbench.runs.records import Record
from kvbench.runs.runner import Runner
from kvbench.runs.store import RunStore
from kvbench.runs.suites import load_suite
from kvbench.texts.windows import windows, windows_of_texts

WINDOW, WINDOWS = 1024, 8
"""Tokens, and how many times so many, that a compressor is calibrated on."""


@contextmanager
def compress(
    model: PreTrainedModel | LoadedModel,
    compressor: str | Compressor,
    calibration: str | Sequence[str] | Tensor | Statistics = "essays",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[CompressedModel]:
    """Attach ``compressor`` to ``model``; ``.new_cache()`` of what it yields goes to ``past_key_values``.

    Args:
        model: any decoder of transformers, or what :func:`kvbench.load` returns.
        compressor: a spec such as ``"kvtc:bits=3"``.
        calibration: what a compressor that needs to is fitted on; looked at only then. The name of a text or a file (8
            windows of 1,024 tokens), your own texts, which are joined, token ids (windows, tokens), or statistics at
            hand. What a model of :func:`kvbench.load` was calibrated on by name is kept on disk.
        tokenizer: of ``model``, where calibration has to read text; what is loaded by kvbench brings its own.

    Leaving the context restores the model bit for bit.

    Raises:
        KvbenchError: a bad spec, a model that cannot carry a compressed cache, the stock baseline ``hf``, or a text to
            calibrate on and no tokenizer.
    """
    parsed = parse(compressor) if isinstance(compressor, str) else compressor
    if parsed.stock is not None:
        name = parsed.stock.name
        raise KvbenchError(
            f"{name} is transformers' own cache: there is nothing to attach, call generate() without kvbench"
        )
    if not isinstance(model, LoadedModel | PreTrainedModel):
        raise KvbenchError(f"compress takes a decoder of transformers or what kvbench.load returns, no {type(model)}")
    if isinstance(model, LoadedModel):
        factory, tokenizer = ArmFactory.of(model), tokenizer or model.tokenizer
    else:
        factory = ArmFactory(model)

    def statistics() -> Statistics:
        if isinstance(calibration, Statistics):
            return calibration
        if isinstance(calibration, str) and isinstance(model, LoadedModel):
            read = windows(calibration, "calibration", model.tokenizer, WINDOW, WINDOWS)
            return calibrated(model, factory.geometry, read)
        return collected(factory.model, factory.geometry, _token_ids(calibration, tokenizer))

    attached = factory.arm(parsed, statistics).attachment
    assert attached is not None  # only a stock cache has none
    with attached:
        yield attached


def _token_ids(calibration: str | Sequence[str] | Tensor, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """What is read for calibration, (windows, tokens)."""
    if isinstance(calibration, Tensor):
        if calibration.dim() != 2 or calibration.is_floating_point() or not calibration.numel():
            raise KvbenchError(f"token ids to calibrate on are integers (windows, tokens); got {_shape(calibration)}")
        return calibration
    if tokenizer is None:
        raise KvbenchError(
            "this compressor is fitted on text, which takes the model's tokenizer: pass tokenizer=…, or token ids "
            "(windows, tokens) as calibration=…"
        )
    if isinstance(calibration, str):
        return windows(calibration, "calibration", tokenizer, WINDOW, WINDOWS).ids
    return windows_of_texts(calibration, tokenizer, WINDOW, WINDOWS)


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def run(
    suite: str = "quick",
    *,
    model: str | None = None,
    compressors: Sequence[str] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
) -> list[Record]:
    """Run a suite, resuming what is in ``out`` (default ``runs/<suite>``); the records in the suite's order.

    Raises:
        KvbenchError: a bad suite, spec, model or text.
    """
    chosen = load_suite(suite).narrowed(model=model, compressors=compressors, dtype=dtype)
    with RunProgress(Console(stderr=True)) as progress:
        return Runner(RunStore(out or Path("runs") / chosen.name), progress, device).run(chosen)
