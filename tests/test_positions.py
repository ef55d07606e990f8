"""Visibility follows from positions alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama3_edu import PAD, causal_mask, left_pad, right_pad

ROWS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=4)
position = st.integers(PAD, 8)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_plain_row_sees_the_lower_triangle(length: int, device: torch.device) -> None:
    positions = torch.arange(length, device=device)[None]
    assert torch.equal(causal_mask(positions, positions)[0], torch.ones(length, length, dtype=torch.bool, device=device).tril())


@pytest.mark.parametrize(("cached", "new"), [(0, 4), (3, 1), (5, 2), (2, 5)])
def test_behind_a_cached_prefix_the_triangle_is_a_shifted_rectangle(cached: int, new: int) -> None:
    keys = torch.arange(cached + new)[None]
    expected = torch.ones(new, cached + new, dtype=torch.bool).tril(diagonal=cached)
    assert torch.equal(causal_mask(keys[:, cached:], keys)[0], expected)


@given(queries=st.lists(position, min_size=1, max_size=6), keys=st.lists(position, min_size=1, max_size=6))
def test_a_key_is_seen_where_it_is_real_and_not_later(queries: list[int], keys: list[int]) -> None:
    mask = causal_mask(torch.tensor([queries]), torch.tensor([keys]))
    assert mask[0].tolist() == [[0 <= key <= query for key in keys] for query in queries]


@given(cut=st.integers(1, 8))
def test_the_mask_of_the_pieces_is_the_mask_of_the_whole(cut: int) -> None:
    keys = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [PAD, PAD, 0, 1, PAD, 2, 3, 4, PAD]])
    pieces = [causal_mask(queries, keys) for queries in keys.split(cut, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), causal_mask(keys, keys))


@given(order=st.permutations(range(6)))
def test_the_order_of_slots_does_not_matter(order: list[int]) -> None:
    positions = torch.tensor([[0, 1, PAD, 2, 3, 4]])
    assert torch.equal(causal_mask(positions, positions[:, order]), causal_mask(positions, positions)[:, :, order])


@given(rows=ROWS, pad_id=st.integers(0, 99))
def test_padding_keeps_each_row_its_tokens_and_counts_them_from_0(rows: list[list[int]], pad_id: int) -> None:
    width = max(map(len, rows))
    for pad, real in ((right_pad, lambda row: slice(0, len(row))), (left_pad, lambda row: slice(width - len(row), width))):
        tokens, positions = pad(rows, pad_id=pad_id)
        assert tokens.shape == positions.shape == (len(rows), width)
        for row, ids in enumerate(rows):
            assert tokens[row, real(ids)].tolist() == ids
            assert positions[row, real(ids)].tolist() == list(range(len(ids)))
            assert (positions[row] == PAD).sum() == width - len(ids)
            assert (tokens[row, positions[row] == PAD] == pad_id).all()


def test_padding_is_made_on_the_device_asked_for(device: torch.device) -> None:
    for pad in (right_pad, left_pad):
        assert {tensor.device.type for tensor in pad([[1], [2, 3]], device=device)} == {device.type}


@pytest.mark.parametrize("pad", [right_pad, left_pad])
def test_empty_batches_and_rows_are_refused(pad: object) -> None:
    with pytest.raises(ValueError, match="a batch needs at least one row; it was given none"):
        pad([])
    with pytest.raises(ValueError, match="every row needs at least one token; row 1 is empty"):
        pad([[1, 2], []])
