"""How a compressed cache is read: by which implementation, and in which space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from kvbench.errors import unknown

Implementation = Literal["auto", "reference"]
Read = Literal["auto", "absorb", "reconstruct"]


@dataclass(frozen=True)
class Reading:
    """``attention``: the fastest kernel there is for a codec and device, or plain torch everywhere.

    ``read``: attend in the latents, with queries projected once (``absorb``), or rebuild keys and values tile by tile
    (``reconstruct``). ``auto`` absorbs where the codec can, and so does ``absorb``: keys stored before RoPE cannot be.
    """

    attention: Implementation = "auto"
    read: Read = "auto"

    def __str__(self) -> str:
        given = [value for value in (self.attention, self.read) if value != "auto"]
        return "+".join(given) or "auto"

    @classmethod
    def parse(cls, text: str) -> Reading:
        """The inverse of ``str``.

        Raises:
            KvbenchError: a word that is neither.
        """
        options: dict[str, str] = {}
        for word in text.split("+"):
            if word in get_args(Implementation):
                options["attention"] = word
            elif word in get_args(Read):
                options["read"] = word
            else:
                raise unknown("attention", word, [*get_args(Implementation), *get_args(Read)[1:]])
        return cls(**options)  # type: ignore[arg-type]

    @property
    def kernels(self) -> bool:
        """Whether kernels may run."""
        return self.attention == "auto"

    @property
    def absorbs(self) -> bool:
        """Whether latents are attended as they are where a codec can."""
        return self.read != "reconstruct"


DEFAULT = Reading()
