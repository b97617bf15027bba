"""What an error in a layer's keys or values weighs, for methods that give out bits or ranks over the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.codecs.transforms.ranks import Allocation
from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.errors import KvbenchError

Side = tuple[LayerDraft, SideDraft]


def side_weights(how: Allocation, draft: Draft, sides: Sequence[Side]) -> list[float]:
    """Nats, up to a factor, per unit of squared error in each of ``sides``: what makes layers, K and V comparable.

    ``fisher``: the mean Fisher information of the side. ``sensitivity``: the KLD that was measured when this side alone
    was compressed, over the squared error it had. ``energy`` and ``uniform``: 1.

    Raises:
        KvbenchError: the statistics hold no Fisher information, or cannot measure sensitivity.
    """
    if how == "fisher":
        if not all(layer.calibrated.has_fisher for layer, _ in sides):
            raise KvbenchError("allocate=fisher needs statistics with Fisher information; use allocate=energy")
        return [float(layer.calibrated.fisher(side.moment).diagonal().mean()) for layer, side in sides]
    if how == "sensitivity":
        measured = draft.calibrated.sensitivity()
        return [measured.of(layer.geometry.layer, side.moment).weight for layer, side in sides]
    return [1.0] * len(sides)
