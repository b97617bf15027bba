"""The Python face of kvbench: attach a compressor to a loaded model, or run a suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from kvbench.cache.attach import CompressedModel
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.compressor import Compressor, parse
from kvbench.errors import KvbenchError
from kvbench.measure.arm_factory import ArmFactory
from kvbench.measure.sensitivity import calibrated
from kvbench.models.loading import LoadedModel
from kvbench.runs.progress import RunProgress
from kvbench.runs.records import Record
from kvbench.runs.runner import Runner
from kvbench.runs.store import RunStore
from kvbench.runs.suites import load_suite
from kvbench.texts.windows import windows


@contextmanager
def compress(
    loaded: LoadedModel, compressor: str | Compressor, calibration: Statistics | str = "essays"
) -> Iterator[CompressedModel]:
    """Attach ``compressor`` to ``loaded``; ``.new_cache()`` of what it yields goes to ``past_key_values``.

    ``calibration`` is the name of a text (8 windows of 1,024 tokens, collected once) or statistics at hand; it is only
    looked at when the compressor needs it. Leaving the context restores the model bit for bit.

    Raises:
        KvbenchError: a bad spec, a model that cannot carry a compressed cache, or the stock baseline ``hf``.
    """
    parsed = parse(compressor) if isinstance(compressor, str) else compressor
    if parsed.stock is not None:
        name = parsed.stock.name
        raise KvbenchError(
            f"{name} is transformers' own cache: there is nothing to attach, call generate() without kvbench"
        )
    factory = ArmFactory.of(loaded)

    def statistics() -> Statistics:
        if isinstance(calibration, Statistics):
            return calibration
        return calibrated(loaded, factory.geometry, windows(calibration, "calibration", loaded.tokenizer, 1024, 8))

    attached = factory.arm(parsed, statistics).attachment
    assert attached is not None  # only a stock cache has none
    with attached:
        yield attached


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
