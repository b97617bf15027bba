"""What a healing was requested to do, which names it: a folder belongs to one request."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import PositiveInt

from kvbench.compressors.compressor import Compressor
from kvbench.healing.training import Training, in_words
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.storage.frozen import Frozen


class HealRequest(Frozen):
    """``compressor`` on ``model``, fitted to ``windows`` of ``length`` tokens of ``text`` and healed by ``training``.

    ``saved_sha256`` is that of a saved plan, which the spec only names; empty for other specs.
    """

    model: str
    weights_sha256: str
    dtype: str
    compressor: str
    saved_sha256: str
    text: str
    windows: PositiveInt
    length: PositiveInt
    training: Training

    @classmethod
    def of(
        cls, bench: ModelBench, compressor: Compressor, source: CalibrationSource, training: Training
    ) -> HealRequest:
        """A request to the model on the ``bench``."""
        saved = compressor.saved
        return cls(
            model=bench.name,
            weights_sha256=bench.loaded.weights_sha256,
            dtype=str(bench.loaded.model.dtype).removeprefix("torch."),
            compressor=str(compressor),
            saved_sha256="" if saved is None else hashlib.sha256(saved.content()).hexdigest(),
            text=source.text,
            windows=source.windows,
            length=source.length,
            training=training,
        )

    def difference(self, other: HealRequest) -> str:
        """The first setting in which ``other`` differs, and both its values; empty where none does."""
        mine, theirs = self._settings(), other._settings()
        for name, value in mine.items():
            if theirs[name] != value:
                return f"{name.replace('_', '-')} was {in_words(theirs[name])} there and is {in_words(value)} now"
        return ""

    def _settings(self) -> dict[str, Any]:
        settings = self.model_dump()
        return settings | settings.pop("training")
