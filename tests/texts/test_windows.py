"""Windows are cut from the right end of the right split, whatever the tokenizer."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import KvbenchError
from kvbench.models.loading import LoadedModel
from kvbench.models.random_models import byte_tokenizer
from kvbench.texts.windows import check_disjoint, windows

TOKENIZER = byte_tokenizer()


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Ten documents of 300 characters: six calibrate, four evaluate."""
    for index in range(10):
        (tmp_path / f"{index}.txt").write_text(str(index) * 300)
    return str(tmp_path)


def decoded(ids: torch.Tensor) -> str:
    return TOKENIZER.decode(ids.flatten())


def test_calibration_is_read_from_the_start(text: str):
    found = windows(text, "calibration", TOKENIZER, length=100, count=4)
    assert found.ids.shape == (4, 100) and found.ids.dtype == torch.int64
    assert decoded(found.ids) == "0" * 300 + "\n\n" + "1" * 98
    assert [name[:5] for name in found.document_ids] == ["0.txt", "1.txt"]


def test_evaluation_is_read_up_to_the_end(text: str):
    found = windows(text, "evaluation", TOKENIZER, length=100, count=4)
    assert decoded(found.ids) == "8" * 98 + "\n\n" + "9" * 300
    assert [name[:5] for name in found.document_ids] == ["8.txt", "9.txt"]


def test_seeds_take_neighbouring_blocks_that_share_no_token(text: str):
    both = windows(text, "evaluation", TOKENIZER, length=100, count=4).ids
    blocks = [windows(text, "evaluation", TOKENIZER, length=100, count=2, seed=seed).ids for seed in (1, 0)]
    assert torch.equal(torch.cat(blocks), both)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 200), count=st.integers(1, 6))
def test_digest_names_the_ids(length: int, count: int):
    first = windows("pydoc", "calibration", TOKENIZER, length, count)
    assert first.sha256 == windows("pydoc", "calibration", TOKENIZER, length, count).sha256
    assert first.sha256 != windows("pydoc", "calibration", TOKENIZER, length, count, seed=1).sha256


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 300), count=st.integers(1, 8))
def test_fewer_windows_are_a_part_of_more(length: int, count: int):
    more = windows("pydoc", "calibration", TOKENIZER, length, 8).ids
    assert torch.equal(windows("pydoc", "calibration", TOKENIZER, length, count).ids, more[:count])
    more = windows("pydoc", "evaluation", TOKENIZER, length, 8).ids
    assert torch.equal(windows("pydoc", "evaluation", TOKENIZER, length, count).ids, more[8 - count :])


def test_mixed_text_alternates_windows(text: str):
    mixed = windows(f"{text}+pydoc", "calibration", TOKENIZER, length=50, count=5)
    assert torch.equal(mixed.ids[0::2], windows(text, "calibration", TOKENIZER, 50, 3).ids)
    assert torch.equal(mixed.ids[1::2], windows("pydoc", "calibration", TOKENIZER, 50, 2).ids)
    assert {name.partition("/")[0][:5] for name in mixed.document_ids} == {"0.txt", "pydoc"}


def test_text_too_short_says_what_there_is(text: str):
    with pytest.raises(KvbenchError, match="has 1206 tokens in its evaluation split, 2000 are needed"):
        windows(text, "evaluation", TOKENIZER, length=200, count=10)


@pytest.mark.parametrize(("length", "count", "seed"), [(1, 1, 0), (5, 0, 0), (5, 1, -1)])
def test_impossible_windows_are_refused(length: int, count: int, seed: int):
    with pytest.raises(KvbenchError, match="windows need length >= 2"):
        windows("pydoc", "calibration", TOKENIZER, length, count, seed)


def test_special_token_begins_every_window(text: str):
    class WithStart:
        """A tokenizer that puts its first token before every text, as Llama's and Gemma's do."""

        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True, **options: bool) -> object:
            encoded = TOKENIZER(text, **options)
            if add_special_tokens:
                encoded["input_ids"] = [1, *encoded["input_ids"]]
            return encoded

    found = windows(text, "calibration", WithStart(), length=100, count=3)  # type: ignore[arg-type]
    assert found.ids[:, 0].tolist() == [1, 1, 1]
    assert torch.equal(found.ids[:, 1:], windows(text, "calibration", TOKENIZER, length=99, count=3).ids)


def test_splits_share_no_document(text: str):
    calibration = windows(text, "calibration", TOKENIZER, length=100, count=18)
    check_disjoint(calibration, windows(text, "evaluation", TOKENIZER, length=100, count=12))


def test_shared_document_is_refused(text: str):
    evaluation = windows(text, "evaluation", TOKENIZER, length=100, count=4)
    with pytest.raises(KvbenchError, match=r"share 1 documents, 9\.txt@"):
        check_disjoint(windows(text, "evaluation", TOKENIZER, length=100, count=1), evaluation)


@pytest.mark.model
@torch.no_grad()
def test_default_model_on_the_end_of_the_essays(smollm2: LoadedModel):
    """Weights, tokenizer and text together: where 4 x 1,024 tokens gave perplexity 28.449, the last 256 gave this."""
    (ids,) = windows("essays", "evaluation", smollm2.tokenizer, length=256, count=1).ids
    loss = torch.nn.functional.cross_entropy(smollm2.model(ids[None]).logits[0, :-1], ids[1:])
    assert loss.item() == pytest.approx(4.0562, abs=1e-3)
