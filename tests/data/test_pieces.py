"""Long texts in pieces with context: each word is new in one row, and given in those that begin with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffusionlm.config import UserError, build
from diffusionlm.data.batches import DataConfig, encode
from diffusionlm.data.pieces import Borders, Pieces, text_lengths
from diffusionlm.data.rows import blocks_of, token_counts
from diffusionlm.data.tokenizers import TokenizerRecipe, WordTokenizer


def test_the_rows_of_a_text_are_those_of_the_documentation() -> None:
    rows = Pieces(max_length=6, context=2).rows(range(10, 18), Borders(start=2, end=3, inner=0))
    assert rows == [[2, 10, 11, 12, 13, 0], [0, 12, 13, 14, 15, 0], [0, 14, 15, 16, 17, 3]]
    known = [list(map(int, row.known)) for row in rows]  # type: ignore[attr-defined]
    assert known == [[0, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert Pieces(6).rows(range(10, 15), Borders(2, 3, 0)) == [[2, 10, 11, 12, 13, 3], [2, 14, 3]]


@pytest.mark.parametrize("context", range(6))
def test_every_word_is_new_once_behind_its_context(context: int) -> None:
    layout = Pieces(max_length=8, context=context)
    for words in range(40):
        spans = layout.spans(words)
        assert [n for _, new, end in spans for n in range(new, end)] == list(range(words))
        assert all(new - first == (context if first else 0) and end - first <= 6 for first, new, end in spans)
        assert layout.counts(np.array([words])).tolist() == [len(spans)]


def test_words_and_lengths_are_counted_once() -> None:
    texts = ["a b c d e f g", "a", "b c d e"]
    tokenizer = WordTokenizer().make(texts)
    pieces, whole = (encode(texts, tokenizer, size, "split", context) for size, context in ((6, 2), (20, 0)))
    assert token_counts(pieces.ids) == token_counts(whole.ids) and pieces.texts == [0, 0, 0, 1, 2]
    assert text_lengths(blocks_of(pieces.ids), 2, tokenizer.pad_token_id).tolist() == [9, 3, 6]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"context": 2}, "^data.context: expected 0, since too_long is 'truncate' and no text is split; set it to 'split'"),
        ({"context": 6, "max_length": 8, "too_long": "split"}, "^data.context: expected 0 to 5, so that a row of max_length 8"),
        ({"context": -1, "too_long": "split"}, "^data.context: expected 0 to 61"),
    ],
)
def test_a_context_without_effect_or_room_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DataConfig, data, "data")


def test_a_tokenizer_without_pad_has_no_border(tmp_path: Path) -> None:
    tokenizer = TokenizerRecipe.find("words")().make(["a b c"])
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match=r"^data.context: expected a tokenizer with a PAD of its own"):
        encode(["a b c"], tokenizer, 4, "split", 1)
