"""The same document never calibrates and evaluates."""

from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvbench.errors import FetchError, KvbenchError
from kvbench.texts import splits
from kvbench.texts.registry import TextEntry
from kvbench.texts.splits import documents


def write(folder: Path, lengths: list[int]) -> Path:
    for index, length in enumerate(lengths):
        (folder / f"{index:02}.txt").write_text("x" * length)
    return folder


def ids(text: str | Path, split: splits.Split) -> list[str]:
    return list(documents(str(text), split)["id"])


def test_pydoc_is_cut_by_document_at_three_fifths_of_its_characters():
    parts = {split: documents("pydoc", split) for split in ("calibration", "evaluation")}
    sizes = {split: sum(map(len, part["text"])) for split, part in parts.items()}
    assert 0.5 < sizes["calibration"] / sum(sizes.values()) <= 0.6
    assert not {*parts["calibration"]["id"]} & {*parts["evaluation"]["id"]}
    assert parts["calibration"]["id"][0] == "pydoc/assert"
    assert [*parts["calibration"]["id"], *parts["evaluation"]["id"]] == sorted(
        [*parts["calibration"]["id"], *parts["evaluation"]["id"]]
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 50), min_size=2, max_size=8))
def test_every_document_is_in_exactly_one_split(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]):
    folder = write(tmp_path_factory.mktemp("text"), lengths)
    calibration, evaluation = ids(folder, "calibration"), ids(folder, "evaluation")
    assert calibration and evaluation
    assert [name[:6] for name in calibration + evaluation] == [f"{index:02}.txt" for index in range(len(lengths))]
    if len(calibration) > 1:
        assert sum(lengths[: len(calibration)]) <= 0.6 * sum(lengths)


def test_documents_of_a_folder_are_the_same_by_every_path(tmp_path: Path):
    write(tmp_path, [3, 4])
    assert ids(tmp_path, "evaluation") == ids(f"{tmp_path}/../{tmp_path.name}", "evaluation")


def test_paragraphs_of_a_single_file_are_its_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\nmore\n\ntwo\n \nthree")
    text = str(tmp_path / "a.txt")
    calibration, evaluation = documents(text, "calibration")["text"], documents(text, "evaluation")["text"]
    assert [*calibration, *evaluation] == ["one\nmore", "two", "three"]


def test_a_single_document_cannot_be_split(tmp_path: Path):
    with pytest.raises(KvbenchError, match="has 1 documents; two are needed"):
        ids(write(tmp_path, [9]), "calibration")


def test_unknown_split_is_refused():
    with pytest.raises(KvbenchError, match="unknown split 'train'"):
        documents("pydoc", "train")  # type: ignore[arg-type]


# Hub texts, read from a local folder through the same call


@pytest.fixture
def hub_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextEntry:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [" = One = \n", "", " first \n", " = = Part = = \n", " more \n", " = Two = \n", " second \n"]
    datasets.Dataset.from_dict({"text": rows, "other": rows}).to_parquet(tmp_path / "train.parquet")
    datasets.Dataset.from_dict({"text": ["alpha", "beta"]}).to_json(tmp_path / "test.json")
    files = {"calibration_file": "train.parquet", "evaluation_file": "test.json"}
    entry = TextEntry("tiny", "hub", repo=str(tmp_path), heading="^ = [^=]", **files)
    monkeypatch.setattr(splits, "find", lambda name: entry)
    return entry


def test_hub_text_brings_its_own_splits(hub_text: TextEntry, monkeypatch: pytest.MonkeyPatch):
    calibration = documents("tiny", "calibration")
    assert [*calibration["text"]] == [" = One = \n first \n = = Part = = \n more \n", " = Two = \n second \n"]
    assert [*calibration["id"]] == ["tiny/train#0", "tiny/train#1"]
    assert not {*calibration["id"]} & {*ids("tiny", "evaluation")}


def test_missing_hub_file_is_said_in_one_line(hub_text: TextEntry, tmp_path: Path):
    (tmp_path / "test.json").unlink()
    with pytest.raises(FetchError, match=r"cannot fetch text tiny \(test.json"):
        documents("tiny", "evaluation")
