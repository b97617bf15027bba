"""A document ready to be scored: its exact prompt, and what the uncompressed cache predicts after it.

Of the predictions only the inputs of the model's output layer are kept, some eighty times smaller than the
distributions that they become. Where the output layer alone does not give the logits (they are scaled or capped behind
it) the distributions themselves are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.divergence import divergence, nll_of
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.prompt_file import prompt_from, prompt_tensors
from kvbench.storage.kept import Contents

FLOOR = 256
"""Tokens at a document's end that the noise floor is measured on: a whole plain pass has gigabytes of logits."""

_SPLIT = "blocks"


@dataclass(frozen=True)
class Document:
    """One document of the uncompressed model; ``none`` scores it in blocks of the same sizes as every compressor."""

    ids: Tensor
    """(1, tokens)."""
    prompt: ExactPrompt
    nll: Tensor
    """Negative log-likelihood of the scored tokens under ``none``, fp64."""
    floor: Tensor
    """KLD of ``none`` against the stock forward pass, per token of the document's end."""
    states: tuple[Tensor, ...]
    """Per block: inputs (tokens, width) of the output layer, or log-probabilities (tokens, vocabulary)."""
    output: nn.Module | None
    """The output layer; None where ``states`` are log-probabilities."""

    def baseline(self) -> Iterator[Tensor]:
        """Log-probabilities (block, vocabulary) of ``none``, fp32, block by block."""
        for states in self.states:
            yield states if self.output is None else _distributions(self.output, states)

    def contents(self) -> Contents:
        """The document as named tensors and texts, without its ids."""
        tensors, texts = prompt_tensors(self.prompt)
        tensors |= {"nll": self.nll, "floor": self.floor, "states": torch.cat(self.states)}
        blocks = {"sizes": [len(states) for states in self.states], "distributions": self.output is None}
        return tensors, texts | {_SPLIT: json.dumps(blocks)}

    @classmethod
    def of(cls, ids: Tensor, model: PreTrainedModel, contents: Contents) -> Document:
        """The document that :meth:`contents` took apart."""
        tensors, texts = contents
        tensors = {name: tensor.to(ids.device) for name, tensor in tensors.items()}
        blocks = json.loads(texts[_SPLIT])
        states = tuple(part.clone() for part in tensors["states"].split(blocks["sizes"]))
        output = None if blocks["distributions"] else model.get_output_embeddings()
        return cls(ids, prompt_from(tensors, texts), tensors["nll"], tensors["floor"], states, output)


def prepare(none: Arm, ids: Tensor, prefix: int, block: int) -> Document:
    """Prefill the first ``prefix`` of ``ids`` (1, tokens) and teacher-force the rest through ``none``.

    Raises:
        KvbenchError: the model's logits are not finite.
    """
    model, output = none.model, none.model.get_output_embeddings()
    prompt = exact_prompt(model, none.geometry, ids[:, :prefix])
    with torch.no_grad():
        stock = model(ids[:, :-1], use_cache=False, logits_to_keep=FLOOR).logits[0]
    seen: list[Tensor] = []
    hook = output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    try:
        states, nll, end, reproduced = [], [], stock[:0].float(), True
        for predicted, targets in zip(
            predictions(none, ids, prompt, block), targets_of(ids, prefix, block), strict=True
        ):
            states.append(torch.cat(seen))
            nll.append(nll_of(predicted, targets))
            end = torch.cat([end, predicted])[-FLOOR:]
            reproduced = reproduced and torch.equal(_distributions(output, states[-1]), predicted)
            seen.clear()  # only now: making the distributions again was seen, too
    finally:
        hook.remove()
    floor = divergence(torch.log_softmax(stock[-len(end) :].float(), -1), end)
    if not reproduced:
        return Document(ids, prompt, torch.cat(nll), floor, tuple(predictions(none, ids, prompt, block)), None)
    return Document(ids, prompt, torch.cat(nll), floor, tuple(states), output)


def targets_of(ids: Tensor, prefix: int, block: int) -> tuple[Tensor, ...]:
    """The tokens that are predicted, block by block: each is the successor of the token fed."""
    return ids[0, prefix + 1 :].split(block)


def predictions(arm: Arm, ids: Tensor, prompt: ExactPrompt, block: int) -> Iterator[Tensor]:
    """Yield log-probabilities (block, vocabulary) for every token after the prompt that has a successor.

    The model is stock between two blocks: arms can take turns, and one that fails leaves no hooks behind.

    Raises:
        KvbenchError: the model's logits are not finite.
    """
    with arm.entered():
        cache = arm.fill(prompt)
    arm.teacher_forced(cache)
    for fed in ids[:, prompt.length : -1].split(block, dim=1):
        with arm.entered():
            logits = arm.forward(fed, cache)[0].float()
        if not bool(torch.stack(logits.aminmax()).isfinite().all()):
            raise KvbenchError(f"{arm.name}: the model's logits are not finite; check its weights and dtype")
        yield torch.log_softmax(logits, -1)


@torch.no_grad()
def _distributions(output: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    return torch.log_softmax(output(states[None])[0].float(), -1)
