"""Long texts through a compressed cache, beside those of the uncompressed one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from kvbench.measure.arms import Arm
from kvbench.measure.batch_decoding import Batch, Stop, decode_batch, last_tokens
from kvbench.measure.bench import ModelBench
from kvbench.measure.memory import walk
from kvbench.measure.parts.generation import Generated, GenerationResult, GenerationWorkload, MemoryAt
from kvbench.measure.quality import QualityBench
from kvbench.measure.sampling import Pick, SharedNoise, likeliest
from kvbench.tasks.fitting import PromptTemplate
from kvbench.texts.perturbed import perturbed
from kvbench.texts.windows import Windows

REQUEST = "Go on with this text, and end it:\n\n"
"""What a chat prompt asks for."""

BLOCK = 256
"""Tokens that are teacher-forced at once."""

EVERY = 32
"""Steps from one walk over the cache to the next."""


@dataclass(frozen=True)
class _Texts:
    """What one arm generated after each prompt, and bytes for each row of its cache after so many steps."""

    tokens: list[list[int]]
    bytes_at: dict[int, float]
    attention: str


@dataclass
class GenerationBench:
    """Prompts (count, tokens) as they are and, for the drift, perturbed; the uncompressed cache's texts are shared."""

    bench: ModelBench
    workload: GenerationWorkload
    documents: Windows
    prompts: Tensor
    perturbed: Tensor | None
    _baseline: tuple[_Texts, _Texts | None] | None = None
    _forced: list[QualityBench] = field(default_factory=list)
    """Each of the uncompressed cache's texts, to be teacher-forced; of a single token there is nothing to score."""

    @classmethod
    def of(cls, bench: ModelBench, workload: GenerationWorkload) -> GenerationBench:
        """Prompts from the beginnings of documents.

        Raises:
            KvbenchError: more tokens than the model's context, too few documents, or no chat template.
        """
        template = PromptTemplate.of(bench.loaded.tokenizer, workload.chat)
        before = (*template.before, *(template.encode(REQUEST) if workload.chat else ()))
        after = tuple(template.encode(template.after))
        bench.check_context(
            "generation (prompt + tokens)", len(before) + workload.prompt + len(after) + workload.tokens
        )
        # Twice as long: a perturbed beginning may have fewer tokens than it had
        documents = bench.evaluation_windows(workload.text, 2 * workload.prompt, workload.prompts, workload.split)

        def put(rows: list[list[int]]) -> Tensor:
            prompts = [[*before, *row[: workload.prompt], *after] for row in rows]
            return torch.tensor(prompts, device=bench.loaded.model.device)

        begins = len(bench.loaded.tokenizer("").input_ids)  # what begins any text stands in the template already
        rows = documents.ids[:, begins:].tolist()
        decode, moved = bench.loaded.tokenizer.decode, None
        if workload.drift:
            beginnings = [(str(decode(row[: workload.prompt])), str(decode(row[workload.prompt :]))) for row in rows]
            texts = [
                perturbed(beginning, workload.perturbed, workload.seed + index) + rest
                for index, (beginning, rest) in enumerate(beginnings)
            ]
            moved = put([template.encode(text) for text in texts])
        return cls(bench, workload, documents, put(rows), moved)

    def windows(self) -> Windows:
        """What is read, for the trial's id."""
        read = repr([self.prompts.tolist(), None if self.perturbed is None else self.perturbed.tolist()])
        return replace(self.documents, sha256=hashlib.sha256(read.encode()).hexdigest())

    def score(self, arm: Arm) -> GenerationResult:
        """Of ``arm``, beside the texts of ``none``.

        Raises:
            KvbenchError: the model's logits are not finite.
        """
        none = self.bench.none()
        if self._baseline is None:
            self._baseline = self._generate(none), self._drifted(none)
            texts = zip(self.prompts, self._baseline[0].tokens, strict=True)
            self._forced = [self._forced_text(prompt, tokens) for prompt, tokens in texts if len(tokens) > 1]
        before, before_drifted = self._baseline
        is_none = arm.name == none.name and arm.reading == none.reading
        after, drifted = self._baseline if is_none else (self._generate(arm), self._drifted(arm))
        forced = [text.score(arm) for text in self._forced]
        scored = sum(result.tokens for result in forced)

        def pooled(name: str) -> float | None:
            return sum(getattr(result, name) * result.tokens for result in forced) / scored if scored else None

        return GenerationResult(
            texts=tuple(self._pair(row, before, after, before_drifted, drifted) for row in range(len(self.prompts))),
            kld_mean=pooled("kld_mean"),
            noise_floor_kld=pooled("noise_floor_kld"),
            memory=tuple(
                MemoryAt(tokens=self.prompts.shape[1] + step, bytes=size) for step, size in after.bytes_at.items()
            ),
            attention=after.attention,
        )

    def _drifted(self, arm: Arm) -> _Texts | None:
        return None if self.perturbed is None else self._generate(arm, self.perturbed)

    def _generate(self, arm: Arm, prompts: Tensor | None = None) -> _Texts:
        """Texts after ``prompts``, by default those that are not perturbed."""
        workload, bytes_at = self.workload, dict[int, float]()
        pick: Pick = SharedNoise(workload.temperature, workload.seed) if workload.temperature else likeliest
        stop = Stop(workload.tokens, last_tokens(self.bench.loaded))
        with arm.entered():
            cache = arm.new_cache()

            def each_step(step: int, rows: int) -> None:
                if step % EVERY == 0:
                    self.bench.report(f"writing through {arm.name}", step, workload.tokens)
                    bytes_at[step] = walk(cache).total / rows

            ids = self.prompts if prompts is None else prompts
            tokens = decode_batch(arm, Batch(cache, ids, stop, pick, each_step))
        return _Texts(tokens, bytes_at, arm.attended_by(cache))

    def _forced_text(self, prompt: Tensor, tokens: list[int]) -> QualityBench:
        """What was written after ``prompt`` (tokens,), with the uncompressed cache's distributions along it."""
        ids = torch.cat([prompt, prompt.new_tensor(tokens)])[None]
        return QualityBench(self.bench.none(), ids, len(prompt), BLOCK)

    def _pair(
        self, row: int, before: _Texts, after: _Texts, before_drifted: _Texts | None, drifted: _Texts | None
    ) -> Generated:
        decode, most = self.bench.loaded.tokenizer.decode, self.workload.tokens
        first, second = before.tokens[row], after.tokens[row]
        return Generated(
            prompt=str(decode(self.prompts[row], skip_special_tokens=True)),
            baseline=str(decode(first, skip_special_tokens=True)),
            compressed=str(decode(second, skip_special_tokens=True)),
            baseline_tokens=len(first),
            tokens=len(second),
            baseline_ended=len(first) < most,
            ended=len(second) < most,
            diverges_at=_first_difference(first, second),
            baseline_repeated=repeated_share(first),
            repeated=repeated_share(second),
            baseline_drift=None if before_drifted is None else _distance(first, before_drifted.tokens[row]),
            drift=None if drifted is None else _distance(second, drifted.tokens[row]),
        )


def repeated_share(tokens: list[int], length: int = 4) -> float:
    """Share of runs of ``length`` tokens that stood before in ``tokens``; 0 where there is none."""
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _first_difference(first: list[int], second: list[int]) -> int | None:
    if first == second:
        return None
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


def _distance(first: list[int], second: list[int]) -> float:
    """Levenshtein's, over the longer one's length."""
    return float(Levenshtein.normalized_distance(first, second))
