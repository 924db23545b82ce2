"""Token rows: hand-written cases, and properties over random ones."""

from __future__ import annotations

import pytest
import torch

from warmup_peft.method.branches import (
    Tokens,
    Warmups,
    join_rows,
    lay_out_branches,
    no_warmups,
    pack,
    positions_of,
    prefix_mask,
    shuffled_warmups,
    split_examples,
)


def warmups(ids, lengths):
    lengths = torch.tensor(lengths)
    return Warmups(torch.tensor(ids), lengths, lengths)


def test_split_pads_prompts_on_the_left_and_targets_on_the_right():
    input_ids = torch.tensor([[5, 6, 7, 8, 0], [9, 1, 2, 3, 4]])
    labels = torch.tensor([[-100, -100, 7, 8, -100], [-100, 1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    prompt, target = split_examples(input_ids, labels, mask)
    assert prompt.ids[prompt.mask].tolist() == [5, 6, 9]
    assert prompt.mask.tolist() == [[True, True], [False, True]]
    assert target.ids[target.mask].tolist() == [7, 8, 1, 2, 3, 4]
    assert target.mask.tolist() == [[True, True, False, False], [True] * 4]


def test_split_drops_what_stands_unsupervised_behind_the_target():
    labels = torch.tensor([[-100, 2, -100]])
    prompt, target = split_examples(torch.tensor([[1, 2, 3]]), labels, torch.ones(1, 3))
    assert (prompt.ids.tolist(), target.ids.tolist()) == ([[1]], [[2]])


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([[1, 2, 3, 4]], "no prompt"),
        ([[-100, 2, -100, 4]], "more than one place"),
        ([[2, -100, -100, 4]], "no prompt"),
    ],
)
def test_split_refuses_rows_without_one_boundary(labels, complaint):
    with pytest.raises(ValueError, match=f"Row 0 .*{complaint}"):
        split_examples(torch.tensor([[1, 2, 3, 4]]), torch.tensor(labels), torch.ones(1, 4))


def test_branches_are_warmup_separator_target_without_gaps():
    warmup = Tokens(torch.tensor([[[11, 12, 0], [0, 0, 0]]]), torch.tensor([[[True, True, False], [False] * 3]]))
    target = Tokens(torch.tensor([[[31, 32], [33, 0]]]), torch.tensor([[[True, True], [True, False]]]))
    branches = lay_out_branches(warmup, torch.tensor([21, 22]), target)
    rows = [ids[mask].tolist() for ids, mask in zip(branches.ids[0], branches.mask[0])]
    assert rows == [[11, 12, 21, 22, 31, 32], [21, 22, 33]]
    assert branches.ids.shape[-1] == 6  # as wide as the longest branch
    assert branches.ids[branches.is_target].tolist() == [31, 32, 33]


def test_packing_keeps_order_on_both_sides():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 100, (7, 3, 12), generator=generator)
    mask = torch.rand(ids.shape, generator=generator) < 0.5
    for side in ("left", "right"):
        packed_mask, packed_ids = pack(mask, ids, side=side)
        for row in range(7):
            for k in range(3):
                assert packed_ids[row, k][packed_mask[row, k]].tolist() == ids[row, k][mask[row, k]].tolist()
        edges = packed_mask[..., -1] if side == "left" else packed_mask[..., 0]
        assert torch.equal(edges, mask.any(-1))


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, False, True, True, True, False]])
    assert positions_of(mask)[0, 2:5].tolist() == [0, 1, 2]


def test_joined_rows_repeat_each_prompt():
    prompt = Tokens(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[False, True], [True, True]]))
    warmup = Tokens(torch.tensor([[[7], [8]], [[9], [6]]]), torch.ones(2, 2, 1, dtype=torch.bool))
    target = Tokens(torch.tensor([[[4], [4]], [[5], [5]]]), torch.ones(2, 2, 1, dtype=torch.bool))
    rows = join_rows(prompt, lay_out_branches(warmup, torch.tensor([0]), target))
    assert rows.ids.tolist() == [[0, 1, 7, 0, 4], [0, 1, 8, 0, 4], [2, 3, 9, 0, 5], [2, 3, 6, 0, 5]]
    assert rows.mask[:, 0].tolist() == [False, False, True, True]


def test_a_warmup_has_stopped_when_it_has_more_decisions_than_tokens():
    warmups = Warmups(torch.zeros(1, 3, 4), torch.tensor([[4, 2, 0]]), torch.tensor([[4, 3, 1]]))
    assert warmups.stopped.tolist() == [[False, True, True]]
    assert warmups.truncated.tolist() == [[True, False, False]]
    assert torch.equal(warmups.tokens().mask, prefix_mask(warmups.lengths, 4))


def test_distinct_warmups_by_hand():
    """First example: "5 6" ended by 1, the same again, and "5 6" ended by 2: another sample. Second: all equal."""
    ids = torch.tensor([[[5, 6, 1], [5, 6, 1], [5, 6, 2]], [[7, 1, 9], [7, 1, 8], [7, 1, 0]]])
    warmups = Warmups(ids, torch.tensor([[2, 2, 2], [1, 1, 1]]), torch.tensor([[3, 3, 3], [2, 2, 2]]))
    distinct, index = warmups.distinct()
    assert distinct.ids.shape == (2, 2, 3)
    assert distinct.ids[0].tolist() == [[5, 6, 1], [5, 6, 2]]
    assert index.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_distinct_draws_put_back_are_the_draws():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2, (50, 6, 3), generator=generator)
    decisions = torch.randint(0, 4, (50, 6), generator=generator)
    warmups = Warmups(ids, decisions, decisions)
    distinct, index = warmups.distinct()
    for b in range(50):
        sampled = [tuple(ids[b, k, : decisions[b, k]].tolist()) for k in range(6)]
        kept = [
            tuple(distinct.ids[b, d, : distinct.num_decisions[b, d]].tolist()) for d in range(distinct.ids.size(1))
        ]
        assert [kept[index[b, k]] for k in range(6)] == sampled
        assert len(set(sampled)) == len(set(kept))
    assert distinct.ids.size(1) == max(len({tuple(r[:d].tolist()) for r, d in zip(*x)}) for x in zip(ids, decisions))


def test_no_warmup_has_neither_token_nor_decision():
    nothing = no_warmups(Tokens(torch.tensor([[5, 6]]), torch.tensor([[True, True]])))
    assert nothing.tokens().mask.sum() == 0
    assert nothing.num_decisions.tolist() == [[0]]
    assert nothing.truncated.tolist() == [[False]]


def test_shuffled_warmups_are_those_of_the_example_before():
    own = warmups([[[5, 6], [7, 8]], [[9, 9], [4, 4]]], [[2, 1], [1, 2]])
    others = shuffled_warmups(own, None)
    assert others.ids.tolist() == [[[9, 9], [4, 4]], [[5, 6], [7, 8]]]
    assert others.lengths.tolist() == [[1, 2], [2, 1]]


def test_a_batch_of_one_borrows_from_the_batch_before():
    one = warmups([[[5, 6], [7, 8]]], [[2, 1]])
    assert shuffled_warmups(one, None) is None
    before = warmups([[[1, 2, 3], [1, 1, 1]], [[9, 9, 9], [4, 4, 4]]], [[2, 1], [3, 2]])
    assert shuffled_warmups(one, before).ids.tolist() == [[[9, 9, 9], [4, 4, 4]]]
