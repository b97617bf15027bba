"""Questions of SQuAD and HotpotQA, which RULER's ``qa`` tasks ask: from the hub, or from local copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import datasets

from kvbench.errors import FetchError, KvbenchError
from kvbench.tasks.ruler.questions import Answerable
from kvbench.texts.hub_data import located


@dataclass(frozen=True)
class PublishedQuestions:
    """``related``, one a question: documents that are set beside its own before any of ``documents`` is (SQuAD: of the
    same article; HotpotQA: those that come with the question)."""

    questions: tuple[Answerable, ...]
    related: tuple[tuple[str, ...], ...]
    documents: tuple[str, ...]

    def draw(self, random: Random, distractors: int) -> tuple[Answerable, Sequence[str]]:
        """A question, and documents of at least ``distractors`` sentences that do not answer it."""
        place = random.randrange(len(self.questions))
        taken = {*self.questions[place].documents}
        others = [each for each in self.related[place] if each not in taken]
        random.shuffle(others)
        taken |= {*others}
        more = [each for each in self.documents if each not in taken]
        return self.questions[place], others + random.sample(more, min(distractors, len(more)))


def squad() -> PublishedQuestions:
    """SQuAD 1.1, validation: one paragraph answers.

    Raises:
        FetchError: the hub cannot be reached, and there is no local copy.
        KvbenchError: a column is missing.
    """
    rows = _rows("rajpurkar/squad", "plain_text", ("title", "context", "question", "answers"))
    of_article: dict[str, dict[str, None]] = {}
    for row in rows:
        of_article.setdefault(row["title"], {})[row["context"]] = None
    questions = [Answerable(row["question"], _distinct(row["answers"]["text"]), (row["context"],)) for row in rows]
    return _corpus(questions, [tuple(of_article[row["title"]]) for row in rows])


def hotpotqa() -> PublishedQuestions:
    """HotpotQA, validation with distractors: two paragraphs answer together. Errors as for :func:`squad`."""
    columns = ("question", "answer", "supporting_facts", "context")
    questions, related = [], []
    for row in _rows("hotpotqa/hotpot_qa", "distractor", columns):
        titles, supporting = row["context"]["title"], {*row["supporting_facts"]["title"]}
        paragraphs = [
            f"{title}\n{''.join(told)}" for title, told in zip(titles, row["context"]["sentences"], strict=True)
        ]
        answering = [text for title, text in zip(titles, paragraphs, strict=True) if title in supporting]
        questions.append(Answerable(row["question"], (row["answer"],), tuple(answering)))
        related.append(tuple(paragraphs))
    return _corpus(questions, related)


CORPORA: dict[str, Callable[[], PublishedQuestions]] = {"qa_1": squad, "qa_2": hotpotqa}
"""By the task that asks them."""


def _corpus(questions: Sequence[Answerable], related: Sequence[tuple[str, ...]]) -> PublishedQuestions:
    return PublishedQuestions(
        tuple(questions), tuple(related), tuple(sorted({each for texts in related for each in texts}))
    )


def _distinct(answers: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answers))


def _rows(repo: str, name: str, columns: Sequence[str]) -> list[Mapping[str, Any]]:
    """The validation rows of a data set."""
    try:
        rows = datasets.load_dataset(**located(repo, name), split="validation")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(
            f"cannot fetch {repo} from the hub: {reason}; give a local copy by --data-dir, or set questions_of to "
            '"invented towns"'
        ) from error
    for column in columns:
        if column not in rows.column_names:
            raise KvbenchError(f"{repo} has no column {column!r}; there are {', '.join(rows.column_names)}")
    return list(rows)
