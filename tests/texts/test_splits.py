"""A document is in one split: what calibrates is not reported, and neither is what settings are chosen by."""

from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvbench.errors import FetchError, KvbenchError
from kvbench.models.random_models import byte_tokenizer
from kvbench.texts import splits
from kvbench.texts.registry import TextEntry
from kvbench.texts.splits import documents, joined_test
from kvbench.texts.windows import joined_windows

SPLITS: tuple[splits.Split, ...] = ("calibration", "development", "test")


def write(folder: Path, lengths: list[int]) -> Path:
    for index, length in enumerate(lengths):
        (folder / f"{index:02}.txt").write_text("x" * length)
    return folder


def ids(text: str | Path, split: splits.Split) -> list[str]:
    return list(documents(str(text), split)["id"])


def test_documents_are_dealt_in_order_of_falling_length(tmp_path: Path):
    folder = write(tmp_path, [10, 30, 20, 60, 50, 40, 70])
    dealt = {split: [name[:2] for name in ids(folder, split)] for split in SPLITS}
    assert dealt == {"test": ["06", "03", "05", "02", "00"], "calibration": ["04"], "development": ["01"]}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 50), min_size=5, max_size=20))
def test_every_document_is_in_exactly_one_split(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]):
    folder = tmp_path_factory.mktemp("text")
    for index, length in enumerate(lengths):
        (folder / f"{index:02}.txt").write_text(f"{index:02}" + "x" * length)
    dealt = {split: ids(folder, split) for split in SPLITS}
    assert all(dealt.values())
    assert sorted(name[:6] for names in dealt.values() for name in names) == [
        f"{index:02}.txt" for index in range(len(lengths))
    ]
    assert 0.6 <= len(dealt["test"]) / len(lengths) <= 0.75
    assert dealt["calibration"] == sorted(dealt["calibration"])
    sizes = [len(text) for text in documents(str(folder), "test")["text"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("text", ["pydoc", "docstrings"])
def test_test_split_of_a_text_that_every_installation_has_holds_three_fifths_of_it(text: str):
    by_split = {split: ids(text, split) for split in SPLITS}
    assert len({name for names in by_split.values() for name in names}) == sum(map(len, by_split.values()))
    assert len(by_split["test"]) / sum(map(len, by_split.values())) == pytest.approx(0.6, abs=0.02)


def test_a_document_that_is_there_twice_is_in_one_split(tmp_path: Path):
    for index, text in enumerate(["a" * 9, "b" * 8, "c" * 7, "a" * 9, "d" * 6, "e" * 5, " \n"]):
        (tmp_path / f"{index}.txt").write_text(text)
    texts = [text for split in SPLITS for text in documents(str(tmp_path), split)["text"]]
    assert sorted(texts) == ["a" * 9, "b" * 8, "c" * 7, "d" * 6, "e" * 5]


def test_documents_of_a_folder_are_the_same_by_every_path(tmp_path: Path):
    write(tmp_path, [3, 4, 5])
    assert ids(tmp_path, "test") == ids(f"{tmp_path}/../{tmp_path.name}", "test")


def test_paragraphs_of_a_single_file_are_its_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\nmore\n\ntwo\n \nthree")
    text = str(tmp_path / "a.txt")
    assert [*documents(text, "test")["text"]] == ["one\nmore", "three"]
    assert [*documents(text, "calibration")["text"]] == ["two"]


@pytest.mark.parametrize(("count", "split", "needed"), [(2, "calibration", 3), (2, "test", 3), (4, "development", 5)])
def test_too_few_documents_are_told(tmp_path: Path, count: int, split: splits.Split, needed: int):
    with pytest.raises(KvbenchError, match=f"has {count} documents; {needed} are needed for a {split} split"):
        ids(write(tmp_path, list(range(1, 1 + count))), split)


def test_unknown_split_is_refused():
    with pytest.raises(KvbenchError, match="unknown split 'train'"):
        documents("pydoc", "train")  # type: ignore[arg-type]


# Hub texts, read from a local folder through the same call


@pytest.fixture
def hub_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, TextEntry]:
    """``tiny``, with a file for each split, and ``two``, without one for development."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [" = One = \n", "", " first \n", " = = Part = = \n", " more \n", " = Two = \n", " second \n"]
    datasets.Dataset.from_dict({"text": rows, "other": rows}).to_parquet(tmp_path / "train.parquet")
    datasets.Dataset.from_dict({"text": ["alpha", "", "beta!!!", "gamma.", "beta", "beta"]}).to_json(
        tmp_path / "test.json"
    )
    datasets.Dataset.from_dict({"text": ["delta", "epsilon"]}).to_json(tmp_path / "validation.json")
    two = TextEntry(
        "two", "hub", repo=str(tmp_path), heading="", calibration_file="train.parquet", test_file="test.json"
    )
    tiny = replace(two, name="tiny", heading="^ = [^=]", development_file="validation.json")
    entries = {"two": two, "tiny": replace(tiny, heading="")}
    monkeypatch.setattr(splits, "find", lambda name: tiny if name == "articles" else entries[name])
    return entries


def test_hub_text_brings_its_own_splits(hub_text: dict[str, TextEntry]):
    calibration = documents("articles", "calibration")
    assert [*calibration["text"]] == [" = One = \n first \n = = Part = = \n more \n", " = Two = \n second \n"]
    assert [*calibration["id"]] == ["tiny/train#0", "tiny/train#1"]
    assert [*documents("tiny", "test")["text"]] == ["beta!!!", "gamma.", "alpha", "beta"]
    assert ids("tiny", "test") == ["tiny/test#2", "tiny/test#3", "tiny/test#0", "tiny/test#4"]
    assert [*documents("tiny", "development")["text"]] == ["epsilon", "delta"]


def test_hub_text_without_a_development_file_gives_a_share_of_its_test_documents(hub_text: dict[str, TextEntry]):
    assert [*documents("two", "test")["text"]] == ["beta!!!", "gamma.", "alpha"]
    assert [*documents("two", "development")["text"]] == ["beta"]


def test_joined_rows_are_those_of_the_test_file_as_published(hub_text: dict[str, TextEntry]):
    """GPTQ's perplexity joins the lines of WikiText-2, empty ones included, by two newlines."""
    rows, separator = joined_test("tiny")
    assert [*rows["text"]] == ["alpha", "", "beta!!!", "gamma.", "beta", "beta"] and separator == "\n\n"
    cut = joined_windows("tiny", byte_tokenizer(), length=6, count=3)
    assert byte_tokenizer().decode(cut.ids.flatten()) == "alpha\n\n\n\nbeta!!!\n\n"
    assert cut.document_ids == ("tiny/test#0", "tiny/test#1", "tiny/test#2")


def test_joined_windows_of_a_text_without_files_are_of_its_test_documents():
    texts = documents("pydoc", "test")["text"]
    cut = joined_windows("pydoc", byte_tokenizer(), length=500, count=2)
    joined = "\n\n".join(texts[:2]).encode()[:1000].decode(errors="ignore")
    assert byte_tokenizer().decode(cut.ids.flatten()).startswith(joined)
    with pytest.raises(KvbenchError, match=r"text pydoc has \d+ tokens in its test rows, \d+ are needed"):
        joined_windows("pydoc", byte_tokenizer(), length=5000, count=1000)


def test_missing_hub_file_is_said_in_one_line(hub_text: dict[str, TextEntry], tmp_path: Path):
    (tmp_path / "test.json").unlink()
    with pytest.raises(FetchError, match=r"cannot fetch text tiny \(test.json"):
        documents("tiny", "test")
