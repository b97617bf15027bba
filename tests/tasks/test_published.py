"""SQuAD and HotpotQA as RULER's questions, from local copies in the hub's format."""

from __future__ import annotations

from pathlib import Path
from random import Random

import datasets
import pytest
from local_tasks import write_rows

from kvbench.errors import FetchError, KvbenchError
from kvbench.measure.bench import ModelBench
from kvbench.measure.parts.tasks import TasksWorkload
from kvbench.storage.data_dir import DATA_DIR
from kvbench.tasks.ruler.published import hotpotqa, squad
from kvbench.tasks.ruler.questions import QuestionAnswering

SQUAD = [
    {
        "title": title,
        "context": f"{title} has fact {number}. It is told at length, as are all facts of this town. It ends.",
        "question": f"Which fact has {title} in paragraph {number}?",
        "answers": {"text": [f"fact {number}", f"fact {number}", f"{title} {number}"], "answer_start": [0, 0, 0]},
    }
    for title in ("Lund", "Mora", "Ystad")
    for number in range(4)
]
HOTPOT = [
    {
        "question": f"Where was the founder of firm {number} born?",
        "answer": f"town {number}",
        "supporting_facts": {"title": [f"firm {number}", f"founder {number}"], "sent_id": [0, 0]},
        "context": {
            "title": [f"firm {number}", "weather", f"founder {number}"],
            "sentences": [[f"Firm {number} is old.", " It was founded."], ["It rains."], [f"Born in town {number}."]],
        },
    }
    for number in range(40)
]


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in (("rajpurkar/squad/plain_text", SQUAD), ("hotpotqa/hotpot_qa/distractor", HOTPOT)):
        (tmp_path / name).mkdir(parents=True)
        write_rows(tmp_path / name / "validation.jsonl", rows)
    return tmp_path


def test_paragraphs_of_the_same_article_come_first(copies: Path) -> None:
    corpus = squad()
    assert len(corpus.documents) == 12 and len(corpus.questions) == 12
    for seed in range(20):
        asked, others = corpus.draw(Random(seed), 5)
        (own,) = asked.documents
        title = own.split()[0]
        assert own not in others and len(others) == len({*others}) == 8
        assert all(each.startswith(title) for each in others[:3]) and not any(e.startswith(title) for e in others[3:])
        assert len(asked.answers) == 2 and asked.answers[0] in own


def test_both_paragraphs_that_answer_are_in_the_context(copies: Path) -> None:
    asked, others = hotpotqa().draw(Random(1), 3)
    assert [each.partition("\n")[0].split()[0] for each in asked.documents] == ["firm", "founder"]
    assert others[0] == "weather\nIt rains." and not {*others} & {*asked.documents}
    sample = QuestionAnswering(hotpotqa()).sample(Random(1), 6)
    assert all(document in sample.context for document in asked.documents)


def test_a_workload_asks_them(copies: Path) -> None:
    bench = ModelBench("random:llama?context=4096")
    settings = TasksWorkload(
        tasks=("qa_1", "qa_2"), length=900, samples=2, chat=False, questions_of="published data", text="pydoc"
    )
    made = settings.windows(bench, None, None)["tasks"]  # type: ignore[arg-type]
    assert made.sha256 != settings.model_copy(update={"seed": 7}).windows(bench, None, None)["tasks"].sha256  # type: ignore[arg-type]


def test_what_is_missing_is_one_line(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(
        copies / "rajpurkar/squad/plain_text/validation.jsonl", [{"title": "a", "context": "b", "question": "c"}]
    )
    with pytest.raises(
        KvbenchError, match="rajpurkar/squad has no column 'answers'; there are title, context, question"
    ):
        squad()
    monkeypatch.setenv(DATA_DIR, str(copies / "nowhere"))
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(
        FetchError, match=r"cannot fetch hotpotqa/hotpot_qa .*no network; give a local copy by --data-dir"
    ):
        hotpotqa()
