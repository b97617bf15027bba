"""lm-evaluation-harness on a compressed cache: its requests answered by an arm.

A context is prefilled once, all but its last token, and compressed; the last token and the continuation then go through
the compressed cache, so that even a continuation of one token sees it. Needs the package ``lm_eval`` (0.4.9 or newer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import Cache

from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.batch_decoding import Batch, Stop, decode_batch, last_tokens
from kvbench.measure.bench import ModelBench
from kvbench.measure.generation import body_tokens
from kvbench.measure.prompt import ExactPrompt, exact_prompt

BLOCK = 256
"""Tokens of a continuation that are scored at once, as if decoded one by one."""

NEW_TOKENS = 256
"""The most that are generated where a task does not say, as in the harness."""

Scored = tuple[float, bool]
Request = tuple[tuple[str, str], list[int], list[int]]


@dataclass
class _Context:
    """The last context that was prefilled: its continuations come one after the other."""

    tokens: list[int]
    prompt: ExactPrompt | None


class CompressedLM(TemplateLM):
    """What the harness calls a model: one ``arm`` of ``bench``. ``report`` is told of every request that is done.

    Contexts that are too long lose tokens on the left, as in the harness.
    """

    backend = "causal"

    def __init__(self, bench: ModelBench, arm: Arm, report: Callable[[str, int, int], None] | None = None) -> None:
        super().__init__()
        self.tokenizer: Any = bench.loaded.tokenizer
        self.most_compressed = 0
        """Tokens of the longest body so far: 0 means that everything was still exact."""
        self._bench, self._arm, self._report = bench, arm, report or (lambda what, done, total: None)
        self._context = _Context([], None)
        self._device = bench.loaded.model.device

    # ---- tokens ----------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that an empty context stands for."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """Tokens of the model's context."""
        return self._bench.loaded.context_length

    @property
    def tokenizer_name(self) -> str:
        """For the fingerprints of the harness."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """As the harness's own model does: special tokens where the tokenizer adds them, and no second first token."""
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            special = {"add_special_tokens": False}
        return list(self.tokenizer.encode(string, **special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's."""
        return str(self.tokenizer.chat_template or "")

    # ---- requests --------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[Scored]:
        order = sorted(range(len(requests)), key=lambda index: requests[index][1])  # same contexts side by side
        results: dict[int, Scored] = {}
        for done, index in enumerate(order):
            self._report("scoring", done, len(order))
            request, context, continuation = requests[index]
            results[index] = self._score(context, continuation)
            self.cache_hook.add_partial("loglikelihood", request, results[index])
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Whole texts, in windows of the model's context as the harness cuts them; each grows its cache as it goes."""
        results = []
        for done, request in enumerate(requests):
            self._report("scoring", done, len(requests))
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            results.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, up to the first of the task's stop texts.

        Raises:
            KvbenchError: a task that samples, or an answer longer than the model's context.
        """
        results = []
        for done, request in enumerate(requests):
            self._report("generating", done, len(requests))
            context, settings = request.args
            results.append(self._generate(context, dict(settings)))
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    # ---- one request -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self, context: list[int], continuation: list[int]) -> Scored:
        """Log-likelihood of ``continuation`` after ``context``, and whether it is the greedy one."""
        kept = max(self.max_length + 1 - len(continuation), 1)
        context = context[-kept:]
        if len(continuation) > self.max_length:
            raise KvbenchError(
                f"a continuation has {len(continuation)} tokens, but the context of {self._bench.name} ends at "
                f"{self.max_length}"
            )
        fed = torch.tensor([[*context[-1:], *continuation[:-1]]], device=self._device)
        targets = torch.tensor(continuation, device=self._device)
        total, greedy = 0.0, True
        with self._arm.entered():
            cache = self._cache(context[:-1])
            for block, wanted in zip(fed.split(BLOCK, 1), targets.split(BLOCK), strict=True):
                logits = self._arm.forward(block, cache)[0]
                scores = torch.log_softmax(logits.float() if logits.dtype.itemsize == 2 else logits, -1)
                greedy = greedy and bool((scores.argmax(-1) == wanted).all())
                total += float(scores.gather(1, wanted[:, None]).sum())
        self.most_compressed = max(self.most_compressed, body_tokens(cache))
        return total, greedy

    @torch.no_grad()
    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        until, most = _stops(settings), int(settings.get("max_gen_toks", NEW_TOKENS))
        if settings.get("do_sample"):
            raise KvbenchError("this task samples its answers; kvbench decodes greedily: set do_sample: false")
        room = self.max_length - most
        if room < 1:
            raise KvbenchError(
                f"{most} new tokens do not fit into the context of {self._bench.name} ({self.max_length}); "
                "lower the task's max_gen_toks"
            )
        tokens = self.tok_encode(context)[-room:] or [self.prefix_token_id]

        def stopped(row: int, made: list[int]) -> bool:
            text = self._text(made)
            return any(stop in text for stop in until)

        with self._arm.entered():
            cache = self._cache(tokens[:-1], teacher_forced=False)
            fed = torch.tensor([tokens[-1:]], device=self._device)
            (made,) = decode_batch(self._arm, Batch(cache, fed, Stop(most, last_tokens(self._bench.loaded), stopped)))
        self.most_compressed = max(self.most_compressed, body_tokens(cache))
        text = self._text(made)
        for stop in until:
            text = text.split(stop)[0]
        return text

    def _cache(self, tokens: list[int], teacher_forced: bool = True) -> Cache:
        """A cache that has taken ``tokens`` in, compressed."""
        if tokens != self._context.tokens or (tokens and self._context.prompt is None):
            loaded, ids = self._bench.loaded, torch.tensor([tokens], device=self._device)
            self._context = _Context(tokens, exact_prompt(loaded.model, self._bench.geometry, ids) if tokens else None)
        prompt = self._context.prompt
        cache = self._arm.new_cache() if prompt is None else self._arm.fill(prompt)
        if teacher_forced:
            self._arm.teacher_forced(cache)
        return cache

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _stops(settings: dict[str, Any]) -> list[str]:
    """The texts that end an answer."""
    until = settings.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]
