"""Conversations as a model's chat template writes them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError


def rendered_chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """``turns`` (role, content) and the beginning of the model's answer.

    Raises:
        KvbenchError: the template cannot be rendered; it may hold anything, code that reaches for Python's insides too.
    """
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of its author's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KvbenchError(f"the model's chat template cannot be rendered: {reason}") from error
