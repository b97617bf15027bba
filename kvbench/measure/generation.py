"""A prompt completed twice, uncompressed and compressed, and where the two diverge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.memory import walk
from kvbench.models.chat import rendered_chat
from kvbench.models.loading import LoadedModel


@dataclass(frozen=True)
class Completion:
    """Generated token ids (without the prompt), their text, and the cache they leave behind."""

    tokens: tuple[int, ...]
    text: str
    cache_bytes: int
    body_tokens: int
    """Tokens of the longest layer body: 0 means that everything was still exact."""


@dataclass(frozen=True)
class SideBySide:
    """Two completions of one prompt. ``diverges_at`` is the first differing token, None when they agree."""

    prompt_tokens: int
    uncompressed: Completion
    compressed: Completion
    diverges_at: int | None


def side_by_side(loaded: LoadedModel, none: Arm, arm: Arm, ids: Tensor, tokens: int) -> SideBySide:
    """Complete ``ids`` (1, tokens) greedily by ``tokens`` tokens with and without compression."""
    plain, packed = complete(loaded, none, ids, tokens), complete(loaded, arm, ids, tokens)
    pairs = zip(plain.tokens, packed.tokens, strict=False)
    first = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
    if first is None and len(plain.tokens) != len(packed.tokens):
        first = min(len(plain.tokens), len(packed.tokens))
    return SideBySide(ids.shape[1], plain, packed, first)


def prompt_ids(loaded: LoadedModel, prompt: str, tokens: int, chat: bool = False) -> Tensor:
    """Token ids (1, tokens) of a prompt that ``tokens`` new ones shall follow.

    ``chat`` wraps it in the model's chat template.

    Raises:
        KvbenchError: an empty prompt, nothing to generate, no chat template, or more than the model's context.
    """
    if tokens < 1:
        raise KvbenchError(f"at least 1 new token is needed, got {tokens}")
    if not prompt.strip():
        raise KvbenchError("the prompt is empty; give some text to continue")
    if not _is_unicode(prompt):
        raise KvbenchError("the prompt is no valid UTF-8 text")
    if chat:
        if not loaded.tokenizer.chat_template:
            raise KvbenchError(f"{loaded.name} has no chat template; leave out --chat")
        prompt = rendered_chat(loaded.tokenizer, [{"role": "user", "content": prompt}])
    ids = loaded.tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).input_ids
    if ids.shape[1] + tokens > loaded.context_length:
        raise KvbenchError(
            f"prompt ({ids.shape[1]} tokens) and {tokens} new tokens exceed the context of {loaded.name} "
            f"({loaded.context_length} tokens); shorten one of them"
        )
    return ids.to(loaded.model.device)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line that were none
        return False
    return True


@torch.no_grad()
def complete(loaded: LoadedModel, arm: Arm, ids: Tensor, tokens: int) -> Completion:
    """Greedy completion of ``ids`` (1, tokens) through ``arm``'s cache."""
    with arm.entered():
        cache = arm.new_cache()
        output = loaded.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=loaded.tokenizer.pad_token_id or loaded.tokenizer.eos_token_id or 0,
        )
    new = output[0, ids.shape[1] :].tolist()
    return Completion(tuple(new), str(loaded.tokenizer.decode(new)), walk(cache).total, body_tokens(cache))


def body_tokens(cache: Cache) -> int:
    """Tokens of the longest layer body; 0 where everything is still exact, and in caches of transformers."""
    if not isinstance(cache, CompressedCache):
        return 0
    return max((layer.body.entries for layer in cache.layers if isinstance(layer, CompressedLayer)), default=0)
