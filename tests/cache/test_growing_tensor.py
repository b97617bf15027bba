"""A growing tensor holds what a list would hold, never writes into a tensor it was lent, and wastes little."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvbench.cache.buffers import GrowingTensor
from kvbench.cache.growth import HEADROOM

LAYOUTS = ("plain", "transposed", "slice")


def numbers(count: int, start: int) -> torch.Tensor:
    """(2, 3, count, 2), every element of token t being start + t."""
    return torch.arange(start, start + count, dtype=torch.float32).view(1, 1, -1, 1).expand(2, 3, -1, 2).clone()


class AgainstAList(RuleBasedStateMachine):
    """The same operations on a GrowingTensor and on a list of tokens."""

    @initialize(count=st.integers(1, 40), layout=st.sampled_from(LAYOUTS))
    def adopt(self, count: int, layout: str) -> None:
        self.lent = numbers(count, 0)
        if layout == "transposed":  # how projections come: tokens before heads in memory
            self.lent = self.lent.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "slice":  # how fused projections come
            self.lent = numbers(count + 3, 0)[:, :, :count]
        self.unchanged = self.lent.clone()
        self.buffer = GrowingTensor.adopt(self.lent)
        self.tokens = list(range(count))
        self.next = count

    @rule(count=st.integers(1, 12))
    def append(self, count: int) -> None:
        self.buffer.append(numbers(count, self.next))
        self.tokens += range(self.next, self.next + count)
        self.next += count

    @rule(share=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    def truncate(self, share: float) -> None:
        length = int(share * len(self.tokens))
        self.buffer.truncate(length)
        self.tokens = self.tokens[:length]

    @rule(share=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), capacity=st.integers(1, 30))
    def drop_front(self, share: float, capacity: int) -> None:
        count = int(share * len(self.tokens))
        self.buffer.drop_front(count, capacity)
        self.tokens = self.tokens[count:]
        storage = self.buffer.data.untyped_storage().nbytes()
        assert storage == max(capacity, len(self.tokens)) * 2 * 3 * 2 * 4 or capacity == self.buffer.data.shape[2]

    @rule()
    def swap_rows(self) -> None:
        self.buffer.map_rows(lambda tensor: tensor.flip(0))

    @invariant()
    def same_content(self) -> None:
        assert self.buffer.length == len(self.tokens)
        assert self.buffer.view[1, 2, :, 1].tolist() == self.tokens
        assert (self.buffer.view == self.buffer.view[:1, :1, :, :1]).all()

    @invariant()
    def the_lent_tensor_is_unchanged(self) -> None:
        assert torch.equal(self.lent, self.unchanged)

    @invariant()
    def slack_is_what_the_storage_holds_beyond_the_entries(self) -> None:
        allocated = self.buffer.data.untyped_storage().nbytes()
        assert self.buffer.slack_bytes == allocated - len(self.tokens) * 2 * 3 * 2 * 4 >= 0


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


def test_a_whole_tensor_is_taken_over_without_a_copy_and_a_slice_is_not() -> None:
    whole = numbers(10, 0)
    assert GrowingTensor.adopt(whole).data.data_ptr() == whole.data_ptr()
    part = GrowingTensor.adopt(whole[..., :1])
    assert part.data.untyped_storage().nbytes() == 10 * 2 * 3 * 4, "a view must not keep the whole alive"


def test_what_was_lent_survives_a_cut_and_new_tokens() -> None:
    """Several caches may be filled from one prompt."""
    lent = numbers(10, 0)
    buffer = GrowingTensor.adopt(lent)
    buffer.truncate(8)
    buffer.append(numbers(2, 100))
    assert lent[0, 0, :, 0].tolist() == list(range(10))
    assert buffer.view[0, 0, :, 0].tolist() == [*range(8), 100, 101]


def test_growth_is_amortised() -> None:
    buffer, addresses = GrowingTensor.adopt(numbers(1000, 0)), set()
    for token in range(500):
        buffer.append(numbers(1, 1000 + token))
        addresses.add((buffer.data.data_ptr(), buffer.data.shape[2]))
        assert buffer.data.shape[2] <= buffer.length * (1 + 1 / HEADROOM) + 1
    assert len(addresses) < 10, "a step must not copy everything"
