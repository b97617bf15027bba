"""Windows are cut from the right end of the right split, whatever the tokenizer."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import KvbenchError
from kvbench.models.loading import LoadedModel
from kvbench.models.random_models import byte_tokenizer
from kvbench.texts.splits import Split
from kvbench.texts.windows import check_disjoint, windows

TOKENIZER = byte_tokenizer()


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Ten documents of 390 to 300 characters: 0, 1, 3, 5, 6, 8 test, 2, 7 calibrate, 4, 9 are for development."""
    for index in range(10):
        (tmp_path / f"{index}.txt").write_text(str(index) * (390 - 10 * index))
    return str(tmp_path)


def decoded(ids: torch.Tensor) -> str:
    return TOKENIZER.decode(ids.flatten())


def test_calibration_is_read_joined_from_the_start(text: str):
    cut = windows(text, "calibration", TOKENIZER, length=100, count=4)
    assert cut.ids.shape == (4, 100) and cut.ids.dtype == torch.int64
    assert decoded(cut.ids) == "2" * 370 + "\n\n" + "7" * 28
    assert [name[:5] for name in cut.document_ids] == ["2.txt", "7.txt"]


def test_a_scored_window_is_the_start_of_a_document_of_its_own(text: str):
    cut = windows(text, "test", TOKENIZER, length=100, count=4)
    assert [decoded(row) for row in cut.ids] == [name * 100 for name in "0135"]
    assert [name[:5] for name in cut.document_ids] == ["0.txt", "1.txt", "3.txt", "5.txt"]


def test_documents_that_are_too_short_are_passed_over(text: str):
    """Characters order the documents, tokens decide: the longest has fewer of them than the next."""
    Path(text, "b.txt").write_text("ä" * 385)  # of two bytes, and so of two tokens, each
    cut = windows(text, "test", TOKENIZER, length=700, count=1)
    assert [name[:5] for name in cut.document_ids] == ["b.txt"]
    with pytest.raises(KvbenchError, match="has 1 documents of at least 700 tokens in its test split, 2 are needed"):
        windows(text, "test", TOKENIZER, length=700, count=2)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 200), count=st.integers(1, 6), split=st.sampled_from(["calibration", "test"]))
def test_digest_names_the_ids(length: int, count: int, split: Split):
    first = windows("pydoc", split, TOKENIZER, length, count)
    assert first.sha256 == windows("pydoc", split, TOKENIZER, length, count).sha256
    assert first.sha256 != windows("pydoc", split, TOKENIZER, length, count + 1).sha256


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 300), count=st.integers(1, 8), split=st.sampled_from(get_args(Split)))
def test_fewer_windows_begin_more(length: int, count: int, split: Split):
    more = windows("pydoc", split, TOKENIZER, length, 8).ids
    assert torch.equal(windows("pydoc", split, TOKENIZER, length, count).ids, more[:count])


@settings(max_examples=10, deadline=None)
@given(length=st.integers(2, 1500))
def test_shorter_windows_are_of_the_same_documents(length: int):
    longest = windows("pydoc", "test", TOKENIZER, 1500, 6)
    cut = windows("pydoc", "test", TOKENIZER, length, 6)
    assert cut.document_ids == longest.document_ids
    assert torch.equal(cut.ids, longest.ids[:, :length])


def test_mixed_text_alternates_windows(text: str):
    mixed = windows(f"{text}+pydoc", "calibration", TOKENIZER, length=50, count=5)
    assert torch.equal(mixed.ids[0::2], windows(text, "calibration", TOKENIZER, 50, 3).ids)
    assert torch.equal(mixed.ids[1::2], windows("pydoc", "calibration", TOKENIZER, 50, 2).ids)
    assert {name.partition("/")[0][:5] for name in mixed.document_ids} == {"2.txt", "pydoc"}
    scored = windows(f"{text}+pydoc", "test", TOKENIZER, length=50, count=3)
    assert [name.partition("/")[0][:5] for name in scored.document_ids] == ["0.txt", "pydoc", "1.txt"]


def test_one_text_twice_is_refused():
    with pytest.raises(KvbenchError, match=r"pydoc\+pydoc names one text twice"):
        windows("pydoc+pydoc", "test", TOKENIZER, length=50, count=3)


def test_text_too_short_says_what_there_is(text: str):
    with pytest.raises(KvbenchError, match="has 692 tokens in its calibration split, 2000 are needed"):
        windows(text, "calibration", TOKENIZER, length=200, count=10)
    with pytest.raises(KvbenchError, match="has 6 documents of at least 200 tokens in its test split, 10 are needed"):
        windows(text, "test", TOKENIZER, length=200, count=10)


@pytest.mark.parametrize(("length", "count"), [(1, 1), (5, 0)])
def test_impossible_windows_are_refused(length: int, count: int):
    with pytest.raises(KvbenchError, match="windows need length >= 2"):
        windows("pydoc", "calibration", TOKENIZER, length, count)


def test_special_token_begins_every_window(text: str):
    class WithStart:
        """A tokenizer that puts its first token before every text, as Llama's and Gemma's do."""

        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True, **options: bool) -> object:
            encoded = TOKENIZER(text, **options)
            if add_special_tokens:
                encoded["input_ids"] = [1, *encoded["input_ids"]]
            return encoded

    for split in ("calibration", "test"):
        cut = windows(text, split, WithStart(), length=100, count=3)  # type: ignore[arg-type]
        assert cut.ids[:, 0].tolist() == [1, 1, 1]
        assert torch.equal(cut.ids[:, 1:], windows(text, split, TOKENIZER, length=99, count=3).ids)


def test_splits_share_no_document(text: str):
    calibration = windows(text, "calibration", TOKENIZER, length=100, count=6)
    check_disjoint(calibration, windows(text, "test", TOKENIZER, length=100, count=6))


def test_shared_document_is_refused(text: str):
    scored = windows(text, "test", TOKENIZER, length=100, count=4)
    with pytest.raises(KvbenchError, match=r"and test \(.*\) share 1 documents, 0\.txt@"):
        check_disjoint(windows(text, "test", TOKENIZER, length=100, count=1), scored)


@pytest.mark.model
@torch.no_grad()
def test_default_model_on_the_longest_essay(smollm2: LoadedModel):
    """Weights, tokenizer and text together: what the model gave when the splits were made."""
    (ids,) = windows("essays", "test", smollm2.tokenizer, length=256, count=1).ids
    loss = torch.nn.functional.cross_entropy(smollm2.model(ids[None]).logits[0, :-1], ids[1:])
    assert loss.item() == pytest.approx(3.5331, abs=1e-3)
