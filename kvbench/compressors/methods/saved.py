"""``saved``: a plan that ``kvbench fit`` found and wrote down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.compressors.plan_file import PlanFile, open_plan
from kvbench.errors import KvbenchError

PLAN = "plan.safetensors"


@dataclass(frozen=True)
class Saved(Part):
    """The plan in the folder ``path``, as ``kvbench fit --save`` left it: bases, bit widths, ranks and exact spans.

    Nothing is fitted again and no calibration is read, so the compressor is the same on every machine. It runs on the
    model it was fitted for, in the same dtype, and refuses every other. The keys of the exact spans default to
    those of the fit.
    """

    name = "saved"
    family = "fitted plan"
    roles = ("selector", "transform", "quantizer")

    path: str

    def __post_init__(self) -> None:
        self.require(
            not set(self.path) & set("+,"), f"path={self.path!r} must hold no '+' and no ','; rename the folder"
        )

    @property
    def file(self) -> PlanFile:
        """What the plan's file says.

        Raises:
            KvbenchError: missing or damaged.
        """
        return open_plan(Path(self.path) / PLAN)

    @property
    def spans(self) -> Spans:
        """The exact spans of the fit."""
        return self.file.spans

    def content(self) -> bytes:
        """The bytes that the compressor is made of."""
        return self.file.path.read_bytes()

    def check_weights(self, model: str, sha256: str) -> None:
        """Refuse weights that the plan was not fitted for."""
        if self.file.weights_sha256 != sha256:
            raise KvbenchError(
                f"{self.path} was fitted for the weights of {self.file.model}, and those of {model} are others; "
                f"run `kvbench fit --model {model}`"
            )

    def apply(self, draft: Draft) -> None:
        """Every layer as it was."""
        plan = self.file.plan(draft.geometry)
        draft.keys_before_rope = plan.frame == "before"
        for layer in draft:
            layer_plan = plan.layers[layer.geometry.layer]
            if layer_plan.codec is not None:
                layer.codec = _prebuilt(layer_plan.codec)
            layer.selector = layer_plan.selector


def _prebuilt(codec: Codec) -> Callable[..., Codec]:
    return lambda keys, values, before, bands: codec
