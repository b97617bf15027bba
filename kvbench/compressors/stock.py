"""transformers' own caches, measured as they are: kvbench's hooks are off while they run."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import torch
from transformers import Cache, PreTrainedModel, QuantizedCache

from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import OneOf, Rule, at_least
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry


@dataclass(frozen=True)
class StockPart(Part):
    """Base of baselines that bring a cache object of their own."""

    family = "baseline"
    roles = ("baseline",)

    def apply(self, draft: Draft) -> None:
        """Nothing to fill in: kvbench is detached."""

    def entered(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """``model`` as its caches need it: as it is."""
        return nullcontext()

    @abstractmethod
    def new_stock_cache(self, model: PreTrainedModel) -> Cache:
        """An empty cache for ``model``.

        Raises:
            KvbenchError: the model or this installation cannot have one.
        """

    def elements_per_token(self, model: PreTrainedModel, geometry: ModelGeometry) -> int:
        """K and V elements that it keeps of a token, in all layers of ``model`` together: predicted."""
        return sum(layer.elements_per_token for layer in geometry.layers)

    @abstractmethod
    def bits_per_element(self, dtype: torch.dtype) -> float:
        """Bits of a K or V element right after a prompt in ``dtype``, scales included: predicted."""


@dataclass(frozen=True)
class QuantizedStock(StockPart):
    """Base of transformers' QuantizedCache with one of its group-wise backends.

    The whole prompt is quantized; while decoding, exact tokens gather until there are ``residual`` of them, and then
    everything is decoded and quantized anew. Attention runs on the decoded whole. A block of new tokens is not attended
    as if decoded one by one, so teacher forcing flatters it by up to a block.
    """

    package: ClassVar[str]
    backend: ClassVar[str]
    axis: ClassVar[int]
    """The axis that transformers' documentation recommends for this backend, for keys and values alike."""

    bits: int = 4
    group: int = 64
    residual: int = 128

    def new_stock_cache(self, model: PreTrainedModel) -> Cache:
        """A QuantizedCache; models with sliding windows have none."""
        try:
            version(self.package)
        except PackageNotFoundError:
            raise KvbenchError(
                f"{self.name} needs the package {self.package}, which is not installed; pip install 'kvbench[hf-quant]'"
            ) from None
        axes = self.axis, self.axis
        try:
            return QuantizedCache(self.backend, model.config, self.bits, *axes, self.group, self.residual)
        except (ImportError, ValueError) as error:
            raise KvbenchError(f"{self.name}: {error}") from error

    def bits_per_element(self, dtype: torch.dtype) -> float:
        """Codes, and scale and zero in the model's dtype per group."""
        return self.bits + 2 * dtype.itemsize * 8 / self.group


def rules_of(*widths: int) -> tuple[Rule, ...]:
    """Those of a backend that has integers of these ``widths``."""
    return OneOf("bits", widths), at_least("group", 1, "value"), at_least("residual", 1, "token")
