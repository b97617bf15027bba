"""The checks: each is a function of a :class:`Bench` that returns a line about what it saw, or raises."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.open_method import OpenMethod
from kvbench.compressors.part import Part
from kvbench.conformance.bench import TOKENS, Bench

CLOSE = 1e-3
"""Largest logit difference, of logits of order 1, that rounding in another order of fp32 sums may cause."""


class ViolationError(Exception):
    """A check that failed."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ViolationError(what)


def _round_trip(bench: Bench) -> str:
    again = parse(str(bench.compressor))
    _require(again == bench.compressor, f"{bench.compressor} parses back to {again}")
    return str(again)


def _bytes(bench: Bench) -> str:
    with bench.attached() as attached:
        allocated = bench.filled(attached, bench.ids[:2]).nbytes()
    predicted = predict_bytes(attached.plan, bench.geometry, TOKENS, 2)
    error = allocated.total / predicted - 1
    _require(abs(error) <= 0.01, f"allocated {allocated.total} bytes, predicted {predicted} ({error:+.1%})")
    _require(allocated.workspace == 0, f"{allocated.workspace} bytes are held that no span accounts for")
    return f"{allocated.total} bytes, {error:+.2%} from predicted"


def _no_full_copy(bench: Bench) -> str:
    """A decode step over four tiles may not hold a tensor of the size of one layer's keys."""
    rows = bench.ids[:1].repeat(1, 4)[:, : 4 * TOKENS + 1]
    with bench.attached() as attached:
        cache = bench.filled(attached, rows, 4 * TOKENS)
        with _Largest() as largest:
            bench.feed(cache, rows[:, -1:])
    whole = bench.geometry.layers[0].kv_heads * bench.geometry.layers[0].head_dim * 4 * TOKENS
    _require(largest.elements < whole, f"a tensor of {largest.elements} elements was made; all keys are {whole}")
    return f"largest temporary {largest.elements / whole:.0%} of one layer's keys"


def _monotonic(bench: Bench) -> str:
    specs = [parse(spec) for spec in _ladder(bench.compressor)]
    if len(specs) < 2:
        return "no knob to turn"
    errors = [bench.deviation(spec) for spec in specs]
    shown = ", ".join(f"{error:.1e}" for error in errors)
    _require(all(b <= a * 1.02 for a, b in pairwise(errors)), f"error does not fall: {shown}")
    return f"error falls: {shown}"


def _batch(bench: Bench) -> str:
    with bench.attached() as attached:
        together = bench.feed(bench.filled(attached, bench.ids), bench.ids[:, TOKENS : TOKENS + 1])
        alone = [bench.feed(bench.filled(attached, row[None]), row[None, TOKENS : TOKENS + 1]) for row in bench.ids]
    return _same(together, torch.cat(alone), "a row alone and in a batch")


def _token_by_token(bench: Bench) -> str:
    rows, new = bench.ids[:1], bench.ids[:1, TOKENS : TOKENS + 48]
    with bench.attached() as attached:
        cache = bench.filled(attached, rows)
        single = torch.cat([bench.feed(cache, new[:, i : i + 1]) for i in range(new.shape[1])], 1)
        cache = bench.filled(attached, rows)
        cache.as_decoded = True
        block = bench.feed(cache, new)
    return _same(single, block, "token by token and as a block")


def _crop(bench: Bench) -> str:
    rows = bench.ids[:1]
    with bench.attached() as attached:
        cache = bench.filled(attached, rows)
        expected = bench.feed(deepcopy(cache), rows[:, TOKENS : TOKENS + 4])
        bench.feed(cache, rows[:, TOKENS : TOKENS + 3])
        cache.crop(-3)
        again = bench.feed(cache, rows[:, TOKENS : TOKENS + 4])
        for length in (TOKENS // 2, 6, 2):
            cache.crop(length - cache.get_seq_length())
            _require(cache.get_seq_length() == length, f"length {cache.get_seq_length()} after a crop to {length}")
            _require(bool(bench.feed(cache, rows[:, :1]).isfinite().all()), f"not finite after a crop to {length}")
    return _same(expected, again, "before and after a crop")


def _rows(bench: Bench) -> str:
    order = torch.tensor([2, 0, 1])
    new = bench.ids[:, TOKENS : TOKENS + 1]
    with bench.attached() as attached:
        cache = bench.filled(attached, bench.ids)
        twin = deepcopy(cache)
        straight = bench.feed(cache, new)
        twin.reorder_cache(order)
        _same(straight[order], bench.feed(twin, new[order]), "rows and reordered rows")
        repeated = bench.filled(attached, bench.ids[:1])
        repeated.batch_repeat_interleave(2)
        return _same(straight[:1].expand(2, -1, -1), bench.feed(repeated, new[:1].repeat(2, 1)), "a row and its copies")


def _canary(bench: Bench) -> str:
    rows = bench.ids[:1]
    with bench.attached() as attached:
        cache = bench.filled(attached, rows)
        before = bench.feed(deepcopy(cache), rows[:, TOKENS : TOKENS + 1])
        body = _body(cache)
        if not body:
            return "keeps no body"
        _require(any(_flips(bench, cache, name, before) for name in body), "a changed byte changes nothing")
    return "a changed byte changes the output"


def _flips(bench: Bench, cache: CompressedCache, name: str, before: Tensor) -> bool:
    twin = deepcopy(cache)
    tensor = _body(twin)[name]
    raw = tensor.contiguous().view(torch.uint8)
    raw.view(-1)[:: max(1, raw.numel() // 64)] ^= 0x35
    tensor.copy_(raw.view(tensor.dtype).view_as(tensor))
    after = bench.feed(twin, bench.ids[:1, TOKENS : TOKENS + 1])
    return not torch.equal(before, after)


def _serialise(bench: Bench) -> str:
    rows = bench.ids[:1]
    with bench.attached() as attached:
        cache = bench.filled(attached, rows)
        before = bench.feed(deepcopy(cache), rows[:, TOKENS : TOKENS + 1])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "body.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in _body(cache).items()}, path)
            for name, tensor in load_file(path).items():
                _body(cache)[name].copy_(tensor)
        return _same(before, bench.feed(cache, rows[:, TOKENS : TOKENS + 1]), "before and after saving")


def _detach(bench: Bench) -> str:
    ids = bench.ids[:1, :32]
    with torch.no_grad():
        before = bench.model(ids).logits
        with bench.attached() as attached:
            bench.filled(attached, bench.ids[:1], 256)
        after = bench.model(ids).logits
    _require(torch.equal(before, after), "the model answers differently after detaching")
    return "the model is as before, bit for bit"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "spec round trip": _round_trip,
    "bytes as predicted": _bytes,
    "no full copy": _no_full_copy,
    "error falls": _monotonic,
    "batch invariance": _batch,
    "as decoded": _token_by_token,
    "crop": _crop,
    "reorder, repeat, copy": _rows,
    "canary": _canary,
    "save and load": _serialise,
    "detach": _detach,
}


def _ladder(compressor: Compressor) -> Iterable[str]:
    """The spec at rising settings of its first knob."""
    for part in compressor.parts:
        method = OpenMethod.of(part.name)
        if method.knob is None or getattr(part, method.knob) is None:
            continue
        name, choices = method.knob, method.choices
        value = getattr(part, name)
        shares = (0.25, 0.5, 1.0)
        if name != "bits" and value > 1 and not choices:  # a count, as mla's latent
            steps: Sequence[float] = [max(1, round(share * value)) for share in shares]
        else:
            steps = choices or ((2.0, 4.0, 6.0) if name == "bits" else shares)
        changed = (replace(part, **{name: type(value)(step)}) for step in steps)
        return [str(replace(compressor, parts=_with(compressor.parts, part, other))) for other in changed]
    return []


def _with(parts: tuple[Part, ...], part: Part, other: Part) -> tuple[Part, ...]:
    return tuple(other if each is part else each for each in parts)


def _body(cache: CompressedCache) -> dict[str, Tensor]:
    """Views of every tensor of every body; layers may share one."""
    return {
        f"{index}.{name}": tensor
        for index, layer in enumerate(cache.layers)
        if isinstance(layer, CompressedLayer) and layer.owns_body
        for name, tensor in (layer.body.view() | layer.body.fitted).items()
    }


def _same(a: Tensor, b: Tensor, what: str) -> str:
    difference = float((a - b).abs().max())
    _require(difference <= CLOSE, f"{what} differ by {difference:.1e} in the logits")
    return f"{what} agree to {difference:.0e}"


class _Largest(TorchDispatchMode):
    """Remembers the largest floating-point tensor that any operation made; views and in-place results are none."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and _address(tensor) not in given:
                self.elements = max(self.elements, tensor.numel())
        return result


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
