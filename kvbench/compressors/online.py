"""What the online methods share: a rank, and bases that every prompt fits for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.codecs.transforms.online import PromptBasis
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Rule, ShareOrCount


@dataclass(frozen=True)
class Online(Part):
    """Base of parts that keep ``rank`` principal axes of the prompt: up to 1 a share of the width, else a count."""

    family = "low rank"
    roles = ("transform",)
    rules: ClassVar[tuple[Rule, ...]] = (ShareOrCount("rank", "components"),)

    rank: float

    def basis(self, width: int, draft: Draft) -> PromptBasis:
        """The basis of ``width`` channels with this rank.

        Raises:
            KvbenchError: there are fewer channels than the rank needs.
        """
        return prompt_basis(width, self.components(width), draft)

    def components(self, width: int) -> int:
        """Components of ``width`` channels. Raises KvbenchError: there are fewer than the rank needs."""
        self.require(self.rank <= 1 or self.rank <= width, f"rank={self.rank:g}, but there are {width} channels")
        return max(1, round(self.rank * width)) if self.rank <= 1 else int(self.rank)


def prompt_basis(width: int, rank: int, draft: Draft) -> PromptBasis:
    """``rank`` axes of ``width`` channels, kept in fp16 (in fp64 for an fp64 model)."""
    return PromptBasis(width, rank, draft.basis_dtype)
