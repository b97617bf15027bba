"""lm-evaluation-harness through kvbench: the uncompressed cache gives what the harness's own model gives."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from local_tasks import CHOICE, GENERATE, ROLLING, write_rows, write_task

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.bench import CalibrationSource, ModelBench

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install kvbench[lm-eval]")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from kvbench.measure.harness import CompressedLM  # noqa: E402

SOURCE = CalibrationSource("pydoc", 2, 256)


@pytest.fixture(scope="module")
def bench() -> ModelBench:
    return ModelBench("random:llama?context=1024", dtype="float64")


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Tasks over a local file: contexts of some 300 tokens, three choices each."""
    return TaskManager(include_path=str(task_folder(tmp_path_factory.mktemp("tasks"))), include_defaults=False)


def task_folder(folder: Path) -> Path:
    """``folder`` with task files and their rows."""
    random = Random(1)
    words = ["cache", "latent", "rank", "window", "token", "head"]
    rows = [
        {
            "text": " ".join(random.choices(words, k=50)),
            "choices": [" " + " ".join(random.choices(words, k=count)) for count in (1, 2, 3)],
            "answer": random.randrange(3),
        }
        for _ in range(8)
    ]
    data = write_rows(folder / "rows.jsonl", rows)
    sampling = GENERATE.replace("do_sample: false", "do_sample: true")
    kinds = {"choice": CHOICE, "rolling": ROLLING, "generate": GENERATE, "sampling": sampling}
    for name, kind in kinds.items():
        write_task(folder, f"local_{name}", kind, data)
    return folder


def evaluated(model: Any, task: str, manager: TaskManager) -> dict[str, Any]:
    whole = lm_eval.simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True)
    assert whole is not None
    return {
        "results": {name: value for name, value in whole["results"][task].items() if isinstance(value, float)},
        "responses": [sample["filtered_resps"] for sample in whole["samples"][task]],
    }


@pytest.fixture(scope="module")
def reference(bench: ModelBench) -> HFLM:
    """The harness's own model around the very same weights."""
    model = HFLM(pretrained=bench.loaded.model, tokenizer=bench.loaded.tokenizer, batch_size=1, max_length=1024)
    return model


@pytest.mark.parametrize("task", ["local_choice", "local_rolling", "local_generate"])
def test_uncompressed_equals_the_harness_to_the_last_digit(
    bench: ModelBench, reference: HFLM, manager: TaskManager, task: str
) -> None:
    theirs, ours = evaluated(reference, task, manager), evaluated(CompressedLM(bench, bench.none()), task, manager)
    if task == "local_rolling":
        assert ours["results"] == pytest.approx(theirs["results"], rel=1e-6)
    else:
        assert ours["results"] == theirs["results"] and ours["results"]
    for our, their in zip(ours["responses"], theirs["responses"], strict=True):
        assert same(flat(our), flat(their))


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return ours == theirs if any(isinstance(each, str) for each in theirs) else ours == pytest.approx(theirs, rel=1e-5)


def flat(value: Any) -> list[Any]:
    return [each for part in value for each in flat(part)] if isinstance(value, list | tuple) else [value]


def test_a_continuation_of_one_token_sees_the_compressed_context(bench: ModelBench, manager: TaskManager) -> None:
    lossy = CompressedLM(bench, bench.arm(parse("int:bits=2,sinks=0,recent=0,block=8"), SOURCE))
    exact = CompressedLM(bench, bench.none())
    requests = [(("", ""), list(range(4, 204)), [9])]
    assert abs(lossy._loglikelihood_tokens(requests)[0][0] - exact._loglikelihood_tokens(requests)[0][0]) > 1e-4
    assert lossy.most_compressed >= 192 and exact.most_compressed == 0


def test_a_context_is_prefilled_once_for_all_its_continuations(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kvbench.measure.harness as harness

    prefilled: list[int] = []
    prefill = harness.exact_prompt

    def counting(model: Any, geometry: Any, ids: Any) -> Any:
        prefilled.append(ids.shape[1])
        return prefill(model, geometry, ids)

    monkeypatch.setattr(harness, "exact_prompt", counting)
    contexts = [list(range(4, 60)), list(range(5, 90))]
    CompressedLM(bench, bench.none())._loglikelihood_tokens(
        [(("", ""), contexts[index % 2], [index + 1]) for index in range(8)]
    )
    assert sorted(prefilled) == [55, 84]


def test_long_contexts_lose_their_beginning(bench: ModelBench) -> None:
    model = CompressedLM(bench, bench.none())
    long, cut = list(range(4, 204)) * 8, (list(range(4, 204)) * 8)[-1022:]
    (one,), (other,) = (model._loglikelihood_tokens([(("", ""), each, [5, 6, 7])]) for each in (long, cut))
    assert one == other


def test_sampling_is_refused(bench: ModelBench, manager: TaskManager) -> None:
    with pytest.raises(KvbenchError, match="do_sample: false"):
        evaluated(CompressedLM(bench, bench.none()), "local_sampling", manager)
