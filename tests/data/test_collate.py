"""Shifting, padding, and masks that go by lengths."""

from __future__ import annotations

import pytest
import torch

from gakd.data import Example, Row, collate
from gakd.types import IGNORE_INDEX

EOS = 9
EXAMPLES = [
    Example([1, 2, 3], [4, 5, EOS], Row("a", responses=("b",))),
    Example([1], [EOS], Row("a", responses=("b",))),
    Example([6, EOS], [7, 8], Row("a", responses=("b",))),
]


@pytest.mark.parametrize("pad", [0, EOS], ids=["pad token", "pad is end of text"])
def test_every_label_is_the_token_after_its_input_and_only_responses_are_labelled(pad):
    batch = collate(EXAMPLES, pad)
    assert batch.input_ids.shape == (3, 5)
    for row, example in enumerate(EXAMPLES):
        ids, prompt = example.prompt_ids + example.response_ids, len(example.prompt_ids)
        for position in range(5):
            if position < len(ids) - 1:
                assert batch.input_ids[row, position] == ids[position]
                assert batch.attention_mask[row, position] == 1
                supervised = position + 1 >= prompt
                assert batch.labels[row, position] == (ids[position + 1] if supervised else IGNORE_INDEX)
            else:
                assert batch.input_ids[row, position] == pad
                assert batch.attention_mask[row, position] == 0
                assert batch.labels[row, position] == IGNORE_INDEX
    assert batch.mask.sum() == sum(len(example.response_ids) for example in EXAMPLES)


def test_a_batch_is_as_wide_as_its_longest_example_and_its_order_is_kept():
    assert collate(EXAMPLES[1:], 0).input_ids.shape == (2, 3)
    whole, turned = collate(EXAMPLES, 0), collate(EXAMPLES[::-1], 0)
    for tensor, other in zip(whole[:3], turned[:3], strict=True):
        assert torch.equal(tensor.flip(0), other)
    assert (whole.lengths[::-1], whole.keys[::-1]) == (turned.lengths, turned.keys)


def test_supervised_rows_and_their_packed_places_follow_from_the_labels():
    batch = collate(EXAMPLES, 0)
    flat = batch.labels.flatten()
    assert torch.equal(batch.labels_N, flat[flat != IGNORE_INDEX])
    assert batch.lengths == tuple(len(example.response_ids) for example in EXAMPLES)
    width = max(batch.lengths)
    places = [row * width + index for row, length in enumerate(batch.lengths) for index in range(length)]
    assert batch.slots_N.tolist() == places
    assert batch.tokens == sum(example.length - 1 for example in EXAMPLES)
    assert [example.key for example in EXAMPLES] == list(batch.keys)
    assert len(set(batch.keys)) == len(EXAMPLES)


def test_no_examples_are_an_error():
    with pytest.raises(ValueError, match="at least one example"):
        collate([], 0)
