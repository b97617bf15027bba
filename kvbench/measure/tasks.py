"""Answers to tasks' questions through a cache that was compressed before the question came.

Contexts of a task have one length and are prefilled together, once for all compressors; every compressor takes them in
from there. Answers are greedy, all samples of a task at a time, and end when the model ends them, after the task's
number of tokens, or once they contain all that they are scored by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from kvbench.measure.arms import Arm
from kvbench.measure.bench import ModelBench
from kvbench.measure.parts.tasks import TaskScore, TasksResult, TasksWorkload
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.prompt_file import prompt_from, prompt_tensors
from kvbench.storage.kept import kept
from kvbench.tasks.fitting import FittedSample, Frame, fitted_samples
from kvbench.tasks.ruler.ruler import Task, ruler_task
from kvbench.tasks.scoring import METRICS
from kvbench.texts.splits import documents
from kvbench.texts.windows import Windows


@dataclass(frozen=True)
class _Answers:
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    attention: str


@dataclass
class TaskBench:
    """The samples of a workload's tasks, and what the uncompressed cache answers."""

    bench: ModelBench
    workload: TasksWorkload
    _samples: dict[str, tuple[Task, list[FittedSample]]] = field(default_factory=dict)
    _baseline: dict[str, _Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        workload, tokenizer = self.workload, self.bench.loaded.tokenizer
        frame = Frame.of(tokenizer, workload.chat)
        essay = [word for text in documents(workload.text, workload.split)["text"] for word in text.split()]
        for name in workload.tasks:
            task = ruler_task(name, workload.length, essay)
            samples = fitted_samples(task, frame, workload.length, workload.samples, workload.seed, workload.questions)
            self._samples[name] = task, samples

    def windows(self) -> Windows:
        """What is read, for the trial's id."""
        contexts = [sample for _, samples in self._samples.values() for sample in samples]
        digest = hashlib.sha256(repr([(sample.context, sample.questions) for sample in contexts]).encode()).hexdigest()
        return Windows(self.workload.text, self.workload.split, torch.zeros(0, 0), (), digest)

    def score(self, arm: Arm) -> TasksResult:
        """Answers of ``arm`` beside those of ``none``."""
        scores, attention = [], ""
        for place, (name, (_, samples)) in enumerate(self._samples.items()):
            self.bench.report(f"{name} through {arm.name}", place, len(self._samples))
            prompt = self._prompt(samples)
            if name not in self._baseline:
                self._baseline[name] = self._answers(self.bench.none(), name, prompt)
            baseline, answers = self._baseline[name], self._answers(arm, name, prompt)
            attention = answers.attention
            scores.append(
                TaskScore(
                    task=name,
                    score=_mean(answers.scores),
                    baseline=_mean(baseline.scores),
                    scores=answers.scores,
                    baseline_scores=baseline.scores,
                    answers=answers.texts,
                    baseline_answers=baseline.texts,
                    references=tuple(references for _, references in _by_question(samples)),
                )
            )
        return TasksResult(tasks=tuple(scores), attention=attention)

    def _prompt(self, samples: list[FittedSample]) -> ExactPrompt:
        """All contexts of a task, prefilled together."""
        bench = self.bench
        ids = torch.tensor([sample.context for sample in samples], device=bench.loaded.model.device)
        if not bench.identity:
            return exact_prompt(bench.loaded.model, bench.geometry, ids)
        key = [bench.identity, "contexts", hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()]
        return prompt_from(*kept(key, lambda: prompt_tensors(exact_prompt(bench.loaded.model, bench.geometry, ids))))

    def _answers(self, arm: Arm, name: str, prompt: ExactPrompt) -> _Answers:
        """To the first question of every sample, then to the second of each, and so on."""
        task, samples = self._samples[name]
        tokenizer, metric = self.bench.loaded.tokenizer, METRICS[task.metric]
        texts, scores, attention = [], [], ""
        for place in range(len(samples[0].questions)):
            references = [sample.references[place] for sample in samples]

            def right(row: int, tokens: list[int], references: list[tuple[str, ...]] = references) -> bool:
                return metric(str(tokenizer.decode(tokens, skip_special_tokens=True)), references[row]) == 1

            with arm.entered():
                cache = arm.fill(prompt)
                questions = torch.tensor([sample.questions[place] for sample in samples], device=prompt.logits.device)
                answers = greedy(arm, cache, questions, task.new_tokens, self._ends, right)
            attention = arm.attended_by(cache)
            for row, tokens in enumerate(answers):
                texts.append(str(tokenizer.decode(tokens, skip_special_tokens=True)))
                scores.append(metric(texts[-1], references[row]))
        return _Answers(tuple(texts), tuple(scores), attention)

    @property
    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        config = self.bench.loaded.model.generation_config
        tokens = None if config is None else config.eos_token_id
        return {token for token in (tokens if isinstance(tokens, list) else [tokens]) if token is not None}


def greedy(
    arm: Arm, cache: Cache, ids: Tensor, most: int, ends: set[int], enough: Callable[[int, list[int]], bool]
) -> list[list[int]]:
    """At most ``most`` tokens after ``ids`` (rows, tokens), row by row, without the one of ``ends`` that ends them.

    A row is done as soon as ``enough`` says so of its index and tokens; all go on until all are done.
    """
    answers: list[list[int]] = [[] for _ in ids]
    open_rows = set(range(len(ids)))
    for _ in range(most):
        new = arm.forward(ids, cache, logits_to_keep=1)[:, -1].argmax(-1)
        for row in sorted(open_rows):
            token = int(new[row])
            if token not in ends:
                answers[row].append(token)
            if token in ends or enough(row, answers[row]):
                open_rows.discard(row)
        if not open_rows:
            break
        ids = new[:, None]
    return answers


def _by_question(samples: list[FittedSample]) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """(question, references) in the order in which they are answered."""
    count = len(samples[0].questions)
    return [(sample.questions[place], sample.references[place]) for place in range(count) for sample in samples]


def _mean(scores: tuple[float, ...]) -> float:
    return sum(scores) / len(scores)
