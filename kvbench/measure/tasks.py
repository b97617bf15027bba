"""Answers to tasks' questions through a cache that was compressed before the question came.

Contexts of a task have one length and are prefilled together, once for all compressors; every compressor takes them in
from there, once for all questions. A query-aware one takes them in with each question, all but its last token. In a
conversation the questions before, with the right answers to them, follow the context in the same cache. Answers are
greedy, of the samples of several tasks at a time, and end when the model ends them, after the task's number of tokens,
or once they contain all that they are scored by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import Cache

from kvbench.measure.arms import Arm
from kvbench.measure.batch_decoding import Batch, Stop, decode_batches, last_tokens
from kvbench.measure.bench import ModelBench
from kvbench.measure.parts.tasks import Answer, TaskScore
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.prompt_file import prompt_from, prompt_tensors
from kvbench.storage.kept import kept
from kvbench.tasks.fitting import ONE, Dialogue, FittedSample, PromptTemplate, fitted_samples
from kvbench.tasks.sample import Task
from kvbench.tasks.scoring import METRICS
from kvbench.texts.splits import Split, documents
from kvbench.texts.windows import Windows


def essay_words(text: str, split: Split) -> list[str]:
    """Words of all documents, one after the other, that needles are hidden in."""
    return [word for body in documents(text, split)["text"] for word in body.split()]


@dataclass(frozen=True)
class _Answers:
    """One answer of every sample, to its first question or a later one."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    failed: frozenset[int]
    """Samples whose answer ended because the model's logits were not finite."""
    attention: str


@dataclass
class TaskBench:
    """The ``samples`` of tasks by name, and what the uncompressed cache answers."""

    bench: ModelBench
    samples: dict[str, tuple[Task, list[FittedSample]]]
    query_aware: bool = False
    _baseline: dict[str, list[_Answers]] = field(default_factory=dict)
    _last_prompt: tuple[torch.Tensor, ExactPrompt] | None = None
    """The last one only, behind its tokens: prompts are large."""

    @classmethod
    def of(
        cls,
        bench: ModelBench,
        tasks: Mapping[str, tuple[Task, int]],
        template: PromptTemplate,
        count: int,
        seed: int,
        dialogue: Dialogue = ONE,
    ) -> TaskBench:
        """``count`` samples of each of ``tasks``, which are given with their lengths in tokens."""
        samples = {}
        for place, (name, (task, length)) in enumerate(tasks.items()):
            bench.report(f"making samples of {name}", place, len(tasks))
            samples[name] = task, fitted_samples(task, template, length, count, seed, dialogue)
        return cls(bench, samples, dialogue.query_aware)

    def windows(self) -> Windows:
        """What is read, for the trial's id."""
        contexts = [sample for _, samples in self.samples.values() for sample in samples]
        digest = hashlib.sha256(repr([(sample.context, sample.questions) for sample in contexts]).encode()).hexdigest()
        return Windows("tasks", "test", torch.zeros(0, 0), (), digest)

    def answers(self, arm: Arm) -> tuple[TaskScore, ...]:
        """Of ``arm``, beside those of ``none``, a task after the other."""
        none = self.bench.none()
        if not self._baseline:
            self._baseline = self._answers(none)
        is_none = arm.name == none.name and arm.reading == none.reading
        answers = self._baseline if is_none else self._answers(arm)
        return tuple(self._score(name, answers[name]) for name in self.samples)

    def _score(self, name: str, turns: list[_Answers]) -> TaskScore:
        _, samples = self.samples[name]
        decode = self.bench.loaded.tokenizer.decode
        return TaskScore(
            task=name,
            answers=tuple(
                Answer(
                    sample=index,
                    question=str(decode([*sample.questions[place]], skip_special_tokens=True)).strip(),
                    references=sample.references[place],
                    baseline=before.texts[index],
                    compressed=after.texts[index],
                    turn=place + 1,
                    failed=index in before.failed | after.failed,
                    baseline_score=before.scores[index],
                    score=after.scores[index],
                )
                for place, (before, after) in enumerate(zip(self._baseline[name], turns, strict=True))
                for index, sample in enumerate(samples)
            ),
            attention=turns[-1].attention,
        )

    def _prompt(self, ids: torch.Tensor) -> ExactPrompt:
        """``ids`` (samples, tokens), prefilled together."""
        if self._last_prompt is None or not torch.equal(self._last_prompt[0], ids):
            self._last_prompt = None  # released before the next is made
            self._last_prompt = ids, self._new_prompt(ids)
        return self._last_prompt[1]

    def _new_prompt(self, ids: torch.Tensor) -> ExactPrompt:
        bench = self.bench
        if not bench.identity:
            return exact_prompt(bench.loaded.model, bench.geometry, ids)
        key = [bench.identity, "contexts", hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()]
        return prompt_from(*kept(key, lambda: prompt_tensors(exact_prompt(bench.loaded.model, bench.geometry, ids))))

    def _answers(self, arm: Arm) -> dict[str, list[_Answers]]:
        """Those of ``arm`` to all questions; tasks are answered together, as many as there is memory for."""
        answers: dict[tuple[str, int], _Answers] = {}
        with arm.entered():
            batches = (batch for place in range(len(self.samples)) for batch in self._batches(arm, place))
            for batch in decode_batches(arm, batches):
                answers[batch.label] = self._scored(batch, arm.attended_by(batch.cache))
        return {
            name: [answers[name, place] for place in range(len(samples[0].questions))]
            for name, (_, samples) in self.samples.items()
        }

    def _batches(self, arm: Arm, task_place: int) -> Iterator[Batch]:
        """The questions of one task: the first of every sample, then the second and so on."""
        name, (task, samples) = list(self.samples.items())[task_place]
        self.bench.report(f"{name} through {arm.name}", task_place, len(self.samples))
        last = last_tokens(self.bench.loaded)
        for place, (cache, ids) in enumerate(self.filled(arm, samples)):
            right = partial(self._is_right, name, place)
            yield Batch(cache, ids, Stop(task.new_tokens, last, right, failed=set()), label=(name, place))

    def filled(self, arm: Arm, samples: list[FittedSample]) -> Iterator[tuple[Cache, torch.Tensor]]:
        """For the first question of every sample, the second and so on: a cache, and tokens that follow in it."""
        return self._with_each(arm, samples) if self.query_aware else self._before_all(arm, samples)

    def _with_each(self, arm: Arm, samples: list[FittedSample]) -> Iterator[tuple[Cache, torch.Tensor]]:
        """Contexts compressed with a question, and its last token."""
        for place in range(len(samples[0].questions)):
            ids = self._ids([(*sample.context, *sample.questions[place]) for sample in samples])
            yield arm.fill(self._prompt(ids[:, :-1])), ids[:, -1:]

    def _before_all(self, arm: Arm, samples: list[FittedSample]) -> Iterator[tuple[Cache, torch.Tensor]]:
        """Contexts compressed before any question, and a question."""
        context = arm.fill(self._prompt(self._ids([sample.context for sample in samples])))
        for place in range(len(samples[0].questions)):
            ids = self._ids([sample.questions[place] for sample in samples])
            is_last = place == len(samples[0].questions) - 1
            cache = context if is_last else deepcopy(context)
            if samples[0].answers and not is_last:
                told = self._ids([sample.answers[place] for sample in samples])
                arm.forward(torch.cat([ids, told], 1), context, logits_to_keep=1)
            yield cache, ids

    def _scored(self, batch: Batch, attention: str) -> _Answers:
        name, place = batch.label
        task, samples = self.samples[name]
        texts = tuple(self._text(tokens) for tokens in batch.texts)
        references = [sample.references[place] for sample in samples]
        scores = tuple(METRICS[task.metric](text, right) for text, right in zip(texts, references, strict=True))
        return _Answers(texts, scores, frozenset(batch.stop.failed or ()), attention)

    def _is_right(self, name: str, place: int, row: int, tokens: list[int]) -> bool:
        """Whether an answer already contains all that it is scored by."""
        task, samples = self.samples[name]
        return METRICS[task.metric](self._text(tokens), samples[row].references[place]) == 1

    def _text(self, tokens: list[int]) -> str:
        return str(self.bench.loaded.tokenizer.decode(tokens, skip_special_tokens=True))

    def _ids(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        return torch.tensor(rows, device=self.bench.loaded.model.device)
