"""What kvbench makes of every decoder family of the installed transformers, tried on a tiny random model of each.

``make families`` writes it to ``kvbench/models/families.json``, which ``kvbench ls families`` shows;
``test_families.py`` holds that file to it.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

sys.path.append(str(Path(__file__).parents[1]))

from fp64 import Keep64
from tiny_configs import FAMILIES, UNBUILT, VOCABULARY, tiny_model

from kvbench.cache.attach import CompressedModel
from kvbench.cache.self_test import identity_plan, self_test
from kvbench.cache.spans import Spans
from kvbench.codecs.frame import Frame
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.geometry import ModelGeometry, probe_geometry
from kvbench.models.families import FILE, FamilyVerdict

EXACT = 1e-10
TOKENS, REMOVED, PADDING = 30, 9, 4
ROWS = torch.tensor([2, 0, 0])
"""What beam search goes on with."""
SPANS = Spans(sinks=2, recent=4, block=4)


def judge(family: str) -> tuple[FamilyVerdict, dict[Frame, float]]:
    """The verdict on ``family``, and for each frame of its keys the worst error of its logits.

    Run it in :class:`fp64.Keep64`. An error other than a refusal is a bug.
    """
    if family in UNBUILT:
        return FamilyVerdict(UNBUILT[family]), {}
    model = tiny_model(family)
    try:
        geometry = probe_geometry(model)
        self_test(model, geometry, "after")
    except UnsupportedModelError as error:
        return FamilyVerdict(error.reason), {}
    errors: dict[Frame, float] = {"after": drive(model, geometry, "after")}
    before = "no RoPE" if geometry.compressible else ""
    if any(layer.rotary_dims for layer in geometry.compressible):
        try:
            self_test(model, geometry, "before")
            before, errors["before"] = "yes", drive(model, geometry, "before")
        except UnsupportedModelError as error:
            before = error.reason
    compressed = {"latents" if layer.latent else "full attention" for layer in geometry.compressible}
    return FamilyVerdict("", tuple(sorted(compressed)), kept_layers(model, geometry), before), errors


@torch.no_grad()
def drive(model: PreTrainedModel, geometry: ModelGeometry, frame: Frame) -> float:
    """The largest difference from stock logits: tokens in the body, left padding, rows reordered, cropped.

    Where a stock pass without a cache gives others than the stock cache does, the latter counts.
    """
    ids = torch.randint(3, VOCABULARY, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    with CompressedModel(model, identity_plan(geometry, frame, SPANS), geometry) as compressed:
        logits, seen = driven(model, compressed.new_cache(), ids, mask)
    whole = model(ids, attention_mask=mask, **positions(model, mask), use_cache=False).logits
    spans = slice(0, 21), slice(21, TOKENS), slice(TOKENS - REMOVED, TOKENS)
    stock = [whole[rows, span] for rows, span in zip((slice(None), ROWS, ROWS), spans, strict=True)]
    error = worst(logits, stock, seen)
    if error < EXACT:
        return error
    return worst(logits, driven(model, DynamicCache(config=model.config), ids, mask)[0], seen)


def driven(model: PreTrainedModel, cache: Cache, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of three stretches, of which the last one is fed again after a crop, and which of them are real."""
    cache.activate_past_recording()
    logits = [feed(model, cache, ids, mask, (14, 5, 1, 1))]
    cache.reorder_cache(ROWS)
    ids, later = ids[ROWS], mask[ROWS]
    logits.append(feed(model, cache, ids, later, (1, 1, 7), start=21))
    if cache.is_croppable:
        cache.crop(-REMOVED)
        logits.append(feed(model, cache, ids, later, (1, REMOVED - 1), start=TOKENS - REMOVED))
    return logits, [mask[:, :21].bool(), later[:, 21:].bool(), later[:, -REMOVED:].bool()]


def feed(
    model: PreTrainedModel, cache: Cache, ids: Tensor, mask: Tensor, chunks: tuple[int, ...], start: int = 0
) -> Tensor:
    logits = []
    for size in chunks:
        span = slice(start, start + size)
        here = {name: value[:, span] for name, value in positions(model, mask).items()}
        seen = mask[:, : span.stop]
        logits.append(model(ids[:, span], attention_mask=seen, past_key_values=cache, use_cache=True, **here).logits)
        start += size
    return torch.cat(logits, 1)


def positions(model: PreTrainedModel, mask: Tensor) -> dict[str, Tensor]:
    """What ``generate`` passes: positions that count real tokens, where the model takes them."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


def worst(actual: list[Tensor], expected: list[Tensor], real: list[Tensor]) -> float:
    """The largest difference of real tokens, over the largest logit."""
    parts = [((a - b)[mask].abs().max() / b.abs().max()) for a, b, mask in zip(actual, expected, real, strict=False)]
    return float(torch.stack(parts).max())


def kept_layers(model: PreTrainedModel, geometry: ModelGeometry) -> tuple[str, ...]:
    """The kinds of layers whose cache stays as it is."""
    kept = {"sliding window" for layer in geometry.layers if layer.sliding_window is not None}
    attention = {layer.layer for layer in geometry.layers}
    others = [layer for index, layer in enumerate(DynamicCache(config=model.config).layers) if index not in attention]
    kept |= {"linear attention" for layer in others if isinstance(layer, LinearAttentionCacheLayerMixin)}
    return tuple(sorted(kept))


def main(chosen: list[str]) -> None:
    """Try the ``chosen`` families, by default all, and write what came out; how far each is from exact is printed."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    written = json.loads(FILE.read_text("utf-8"))["families"] if chosen else {}
    for family in chosen or FAMILIES:
        with Keep64():
            verdict, errors = judge(family)
        stored = {key: value for key, value in asdict(verdict).items() if value}
        written[family] = stored
        rounded = [f"{frame} {error:.0e}" for frame, error in errors.items()]
        print(f"{family:26}", *rounded, *stored.values(), flush=True)
    FILE.write_text(json.dumps({"transformers": transformers.__version__, "families": written}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
