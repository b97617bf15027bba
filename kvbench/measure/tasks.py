"""Answers to tasks' questions through a cache that was compressed before the question came.

Contexts of a task have one length and are prefilled together, once for all compressors; every compressor takes them in
from there, once for all questions. In a conversation the questions before, with the right answers to them, follow the
context in the same cache. Answers are greedy, all samples of a task at a time, and end when the model ends them, after
the task's number of tokens, or once they contain all that they are scored by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch

from kvbench.measure.arms import Arm
from kvbench.measure.batch_decoding import Stop, decode_batch, last_tokens
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
    """Texts and scores, question by question: the first of every sample, then the second of each, and so on."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    failed: frozenset[int]
    """Those that ended because the model's logits were not finite."""
    attention: str


@dataclass
class TaskBench:
    """The ``samples`` of tasks by name, and what the uncompressed cache answers."""

    bench: ModelBench
    samples: dict[str, tuple[Task, list[FittedSample]]]
    _baseline: dict[str, _Answers] = field(default_factory=dict)
    _last_prompt: tuple[str, ExactPrompt] | None = None
    """Of the last task only: prompts are large."""

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
            if self._last_prompt is None or self._last_prompt[0] != name:
                self._last_prompt = None  # released before the next is made
                self._last_prompt = name, self._prompt(samples)
            prompt = self._last_prompt[1]
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
                    turn=place + 1,
                    failed=row in answers.failed or row in baseline.failed,
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
        texts, scores, attention, last = list[str](), list[float](), "", last_tokens(self.bench.loaded)
        failed = set[int]()
        with arm.entered():
            context, turns = arm.fill(prompt), len(samples[0].questions)
        for place in range(turns):
            references = [sample.references[place] for sample in samples]

            def right(row: int, tokens: list[int], references: list[tuple[str, ...]] = references) -> bool:
                return metric(str(tokenizer.decode(tokens, skip_special_tokens=True)), references[row]) == 1

            questions = torch.tensor([sample.questions[place] for sample in samples], device=prompt.logits.device)
            cache = context if place == turns - 1 else deepcopy(context)
            not_finite = set[int]()
            with arm.entered():
                answers = decode_batch(arm, cache, questions, Stop(task.new_tokens, last, right, not_finite))
                if samples[0].answers and place < turns - 1:
                    told = questions.new_tensor([sample.answers[place] for sample in samples])
                    arm.forward(torch.cat([questions, told], 1), context, logits_to_keep=1)
            attention = arm.attended_by(cache)
            failed |= {len(texts) + row for row in not_finite}
            for row, tokens in enumerate(answers):
                texts.append(str(tokenizer.decode(tokens, skip_special_tokens=True)))
                scores.append(metric(texts[-1], references[row]))
        return _Answers(tuple(texts), tuple(scores), frozenset(failed), attention)
