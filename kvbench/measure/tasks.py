"""Answers to tasks' questions through a cache that was compressed before the question came.

Contexts of a task have one length and are prefilled together, once for all compressors; every compressor takes them in
from there. Answers are greedy, all samples of a task at a time, and end when the model ends them, after the task's
number of tokens, or once they contain all that they are scored by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from kvbench.measure.arms import Arm
from kvbench.measure.bench import ModelBench
from kvbench.measure.greedy import greedy, last_tokens
from kvbench.measure.parts.tasks import Answer, TaskScore
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.prompt_file import prompt_from, prompt_tensors
from kvbench.storage.kept import kept
from kvbench.tasks.fitting import FittedSample, PromptTemplate, fitted_samples
from kvbench.tasks.sample import Task
from kvbench.tasks.scoring import METRICS
from kvbench.texts.splits import Split, documents
from kvbench.texts.windows import Windows


def essay_words(text: str, split: Split) -> list[str]:
    """Words of all documents, one after the other, that needles are hidden in."""
    return [word for body in documents(text, split)["text"] for word in body.split()]


@dataclass(frozen=True)
class _Answers:
    """Texts and scores, question by question: the first of every sample, then the second of each, and so on."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    attention: str


@dataclass
class TaskBench:
    """The ``samples`` of tasks by name, and what the uncompressed cache answers."""

    bench: ModelBench
    samples: dict[str, tuple[Task, list[FittedSample]]]
    _baseline: dict[str, _Answers] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bench: ModelBench,
        tasks: Mapping[str, tuple[Task, int]],
        template: PromptTemplate,
        count: int,
        seed: int,
        questions: int = 1,
    ) -> TaskBench:
        """``count`` samples of each of ``tasks``, which are given with their lengths in tokens."""
        samples = {}
        for place, (name, (task, length)) in enumerate(tasks.items()):
            bench.report(f"making samples of {name}", place, len(tasks))
            samples[name] = task, fitted_samples(task, template, length, count, seed, questions)
        return cls(bench, samples)

    def windows(self) -> Windows:
        """What is read, for the trial's id."""
        contexts = [sample for _, samples in self.samples.values() for sample in samples]
        digest = hashlib.sha256(repr([(sample.context, sample.questions) for sample in contexts]).encode()).hexdigest()
        return Windows("tasks", "test", torch.zeros(0, 0), (), digest)

    def answers(self, arm: Arm) -> tuple[TaskScore, ...]:
        """Of ``arm``, beside those of ``none``, a task after the other."""
        scores, none = [], self.bench.none()
        is_none = arm.name == none.name and arm.reading == none.reading
        for place, (name, (_, samples)) in enumerate(self.samples.items()):
            self.bench.report(f"{name} through {arm.name}", place, len(self.samples))
            prompt = self._prompt(samples)
            if name not in self._baseline:
                self._baseline[name] = self._answers(none, name, prompt)
            answers = self._baseline[name] if is_none else self._answers(arm, name, prompt)
            scores.append(self._score(name, answers))
        return tuple(scores)

    def _score(self, name: str, answers: _Answers) -> TaskScore:
        _, samples = self.samples[name]
        decode, baseline = self.bench.loaded.tokenizer.decode, self._baseline[name]
        order = [(index, place) for place in range(len(samples[0].questions)) for index in range(len(samples))]
        return TaskScore(
            task=name,
            answers=tuple(
                Answer(
                    sample=index,
                    question=str(decode([*samples[index].questions[place]], skip_special_tokens=True)).strip(),
                    references=samples[index].references[place],
                    baseline=baseline.texts[row],
                    compressed=answers.texts[row],
                    baseline_score=baseline.scores[row],
                    score=answers.scores[row],
                )
                for row, (index, place) in enumerate(order)
            ),
            attention=answers.attention,
        )

    def _prompt(self, samples: list[FittedSample]) -> ExactPrompt:
        """All contexts of a task, prefilled together."""
        bench = self.bench
        ids = torch.tensor([sample.context for sample in samples], device=bench.loaded.model.device)
        if not bench.identity:
            return exact_prompt(bench.loaded.model, bench.geometry, ids)
        key = [bench.identity, "contexts", hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()]
        return prompt_from(*kept(key, lambda: prompt_tensors(exact_prompt(bench.loaded.model, bench.geometry, ids))))

    def _answers(self, arm: Arm, name: str, prompt: ExactPrompt) -> _Answers:
        task, samples = self.samples[name]
        tokenizer, metric = self.bench.loaded.tokenizer, METRICS[task.metric]
        texts, scores, attention, last = [], [], "", last_tokens(self.bench.loaded)
        for place in range(len(samples[0].questions)):
            references = [sample.references[place] for sample in samples]

            def right(row: int, tokens: list[int], references: list[tuple[str, ...]] = references) -> bool:
                return metric(str(tokenizer.decode(tokens, skip_special_tokens=True)), references[row]) == 1

            with arm.entered():
                cache = arm.fill(prompt)
                questions = torch.tensor([sample.questions[place] for sample in samples], device=prompt.logits.device)
                answers = greedy(arm, cache, questions, task.new_tokens, last, right)
            attention = arm.attended_by(cache)
            for row, tokens in enumerate(answers):
                texts.append(str(tokenizer.decode(tokens, skip_special_tokens=True)))
                scores.append(metric(texts[-1], references[row]))
        return _Answers(tuple(texts), tuple(scores), attention)
