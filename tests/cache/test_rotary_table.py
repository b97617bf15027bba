"""cos and sin by position, and the positions of a cache's tokens."""

from __future__ import annotations

import weakref

import pytest
import torch
from driving import feed, left_padding, subject, token_ids

from kvbench.hooks.rotary import Positions, RotaryTable
from kvbench.hooks.turns import Turn


def rotation(positions: torch.Tensor, dims: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    angles = positions.double().unsqueeze(-1) * torch.logspace(0, -2, dims)
    return angles.cos(), angles.sin()


def test_a_table_gives_back_what_it_was_shown_and_grows() -> None:
    table = RotaryTable()
    for begin, end in ((0, 5), (5, 6), (6, 90), (3, 7)):
        positions = torch.arange(begin, end)[None]
        table.fill(positions, rotation(positions))
    positions = torch.tensor([[0, 89, 4, 4], [6, 5, 1, 88]])
    for actual, expected in zip(table.lookup(positions), rotation(positions), strict=True):
        assert torch.equal(actual, expected)
    assert 90 * 2 * 4 * 8 <= table.nbytes <= 1.07 * 90 * 2 * 4 * 8


def test_a_table_takes_rows_of_their_own() -> None:
    table, positions = RotaryTable(), torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    table.fill(positions, rotation(positions))
    for actual, expected in zip(table.lookup(positions), rotation(positions), strict=True):
        assert torch.equal(actual, expected)


def test_a_table_does_not_keep_the_prompts_rotation_alive() -> None:
    table, positions = RotaryTable(), torch.arange(9)[None]
    cos, sin = rotation(positions)
    alive = weakref.ref(cos)
    table.fill(positions, (cos, sin))
    del cos
    assert alive() is None


def test_what_is_made_of_positions_is_made_once_for_all_layers() -> None:
    table, made = RotaryTable(), []
    first, second = torch.arange(3)[None], torch.arange(3)[None]
    for positions in (first, first, second, first):  # equal ones of two caches are not the same
        table.remembered(positions, ("key",), lambda: made.append(len(made)))
    table.remembered(first, ("another",), lambda: made.append(len(made)))
    assert made == [0, 1, 2, 3]


def test_kernels_get_no_turn_where_a_pair_turns_by_two_angles() -> None:
    turn, positions = Turn((1, 0, 3, 2), (-1.0, 1.0, -1.0, 1.0)), torch.arange(7)[None]
    for angles, pairs in (([1.0, 1.0, 0.1, 0.1], True), ([1.0, 1.0, 0.1, 0.2], False), ([1.0, 1.0], False)):
        table = RotaryTable()
        turned = positions.double().unsqueeze(-1) * torch.tensor(angles)
        table.fill(positions, (turned.cos(), turned.sin()))
        assert table.turns_pairs(turn) is pairs


def test_positions_are_one_row_while_rows_agree() -> None:
    positions = Positions()
    positions.extend(0, torch.arange(6).expand(3, -1))
    assert positions.index.shape == (1, 6)
    assert positions.index.untyped_storage().nbytes() == 6 * 4
    positions.extend(0, torch.arange(6).expand(3, -1))  # the next layer of the same forward pass
    assert positions.length == 6
    positions.extend(6, torch.tensor([[6], [4], [5]]))
    assert positions.index.tolist() == [[0, 1, 2, 3, 4, 5, last] for last in (6, 4, 5)]
    positions.map_rows(lambda rows: rows[[2, 0]])
    assert positions.index[:, -1].tolist() == [5, 6]
    positions.truncate(2)
    assert positions.index.tolist() == [[0, 1], [0, 1]]
    positions.truncate(0)
    assert positions.length == 0 and positions.index is None


def test_every_layer_shares_one_table_and_one_row_of_positions() -> None:
    one, ids = subject("llama", torch.float32), token_ids(3, 40)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [39, 1])
        assert cache.positions.index.tolist() == [list(range(40))]
        assert cache.nbytes().positions == 40 * 4
        dims = one.geometry.layers[0].rotary_dims
        assert 40 * dims * 2 * 4 <= compressed.rope_table_bytes <= 1.1 * 40 * dims * 2 * 4


def test_left_padded_rows_have_positions_of_their_own() -> None:
    one, ids, mask = subject("llama", torch.float32), token_ids(2, 12), left_padding(2, 12, (5, 0))
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [11, 1], mask)
    assert cache.positions.index[0].tolist() == [0] * 5 + list(range(7))
    assert cache.positions.index[1].tolist() == list(range(12))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_keys_after_rope_and_models_without_rope_need_no_positions(family: str) -> None:
    one = subject(family, torch.float32)
    with one.attach_untested(one.identity("before" if family == "opt" else "after")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(1, 30), [30])
        assert cache.nbytes().positions == 0
        assert compressed.rope_table_bytes == 0
