"""Words that are added to a tokenizer: others are read as before, each of them is one token, and texts come back exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import restaurant_texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data import rows
from diffusionlm.data.batches import encodings
from diffusionlm.data.corpora import to_dataset
from diffusionlm.data.extension import count_words, new_words, reading, with_words
from diffusionlm.data.rows import Texts
from diffusionlm.data.tokenizers import (
    BytePairs,
    Pretrained,
    TokenizerRecipe,
    WordTokenizer,
    check_ids,
    decode_texts,
    load_tokenizer,
    save_tokenizer,
)
from diffusionlm.data.vocabularies import vocabulary_tokenizer, word_piece_tokenizer

NEW = ["▁kangaroo", "▁wombat"]


def ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return next(encodings([text], tokenizer)).ids


@pytest.mark.parametrize("recipe", [WordTokenizer(), BytePairs(300)], ids=["words", "bpe"])
def test_old_texts_are_read_as_before_and_new_words_are_one_token(recipe: TokenizerRecipe, tmp_path: Path) -> None:
    texts = restaurant_texts(200)
    base = recipe.make(texts, 48)
    save_tokenizer(with_words(base, NEW), tmp_path)
    extended = load_tokenizer(tmp_path)
    check_ids(extended, tmp_path)
    assert {word: extended.get_vocab()[word] for word in base.get_vocab()} == base.get_vocab()
    assert [ids(text, extended) for text in texts] == [ids(text, base) for text in texts]
    known = texts[0].split()[0]
    text = f"{known} kangaroo wombat [END] {known}"
    got = ids(text, extended)
    assert got[len(ids(known, base)) :][:2] == [len(base), len(base) + 1]
    assert extended.eos_token_id not in got and extended.model_max_length == 48
    if isinstance(recipe, BytePairs):
        assert decode_texts(extended, [ids("a kangaroo, two kangaroos", extended)]) == ["a kangaroo, two kangaroos"]
        assert ids("kangaroos", extended) == ids("kangaroos", base)  # no merge of the word acts in another one


def test_special_tokens_outside_the_vocabulary_of_the_model_keep_their_ids(tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "[U]": 3}, [("a", "b")], unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[E]", unk_token="[U]").save_pretrained(tmp_path)
    base = Pretrained(str(tmp_path)).make([])
    extended = with_words(base, ["abba"])
    assert extended.get_vocab() == base.get_vocab() | {"abba": len(base)}
    assert ids("ab abba", extended) == [2, len(base)]


def test_word_pieces_and_given_vocabularies_are_extended(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c"]))
    pieces = word_piece_tokenizer(str(tmp_path / "vocab.txt"), 16, True)
    for base in (pieces, vocabulary_tokenizer(FRAME_WORDS, 16)):
        counts = count_words(["ab cabbab c", "cabbab"], base)
        words = new_words(counts, base, 1, 2)
        assert [*words] == ["cabbab"]
        extended = with_words(base, [*words])
        assert ids("c cabbab", extended) == [*ids("c", base), len(base)]


FRAME_WORDS = {"[START]": 0, "[END]": 1, "[UNK]": 2, "[PAD]": 3, "ab": 4, "c": 5}


def test_those_words_come_first_that_save_the_most_tokens() -> None:
    base = WordTokenizer().make(["a b"])
    counts = count_words(["c c c d d d e e f", "a a a a"], base)
    assert new_words(counts, base, 10, 2) == {"▁c": [1], "▁d": [1], "▁e": [1]}
    assert [*new_words(counts, base, 1, 1)] == ["▁c"]
    assert reading(counts, base).unknown == 9 / 13 and reading(counts, base).tokens_per_word == 1
    assert reading(counts, with_words(base, ["▁c", "▁d"])).unknown == 3 / 13
    split = BytePairs(10).make(["abcdefg"])  # no merges: a token for each character and for the blank
    counts = count_words(["abcde abcde", "ab ab ab", "a a a a a a a a a"], split)
    assert [*new_words(counts, split, 10, 2)] == ["▁abcde", "▁ab"]  # 2 (6 - 1) and 3 (3 - 1) tokens are saved
    assert reading(counts, split).tokens_per_word == (2 * 6 + 3 * 3 + 9 * 2) / 14


def test_words_of_a_large_corpus_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["It's a pub.", "a  b\u00a0c", "e\u0301t\u00e9 don't\ta", "", *(f"number {i}" for i in range(9))]
    monkeypatch.setattr(rows, "BLOCK", 4)
    dataset = to_dataset([{"text": text} for text in texts])
    base = WordTokenizer().make(["a"])
    found = count_words(Texts(dataset), base)
    assert found == count_words(texts, base) and found["▁number"] == 9 and found["▁été"] == 1 and found["▁a"] == 3


def test_tokenizers_that_take_no_further_words_are_refused() -> None:
    with pytest.raises(UserError, match="expected a tokenizer of words or of pieces of words .*, got Unigram"):
        count_words(["a"], wrapped(Tokenizer(models.Unigram([("[U]", 0.0), ("a", -1.0)], 0))))
    marked = models.BPE({"[U]": 0, "a</w>": 1}, [], unk_token="[U]", end_of_word_suffix="</w>")
    with pytest.raises(UserError, match="byte pairs without marks"):
        count_words(["a"], wrapped(Tokenizer(marked)))
    with pytest.raises(UserError, match=r"expected a tokenizer that splits '\[U\]' in a text"):
        count_words(["a"], wrapped(Tokenizer(models.BPE({"[U]": 0, "a": 1}, [], unk_token="[U]"))))
    words = models.WordLevel({"[U]": 0, "a": 1}, unk_token="[U]")
    assert count_words(["a b"], wrapped(Tokenizer(words))) == {"a": 1, "b": 1}
    outside = PreTrainedTokenizerFast(
        tokenizer_object=wrapped(Tokenizer(words)).backend_tokenizer, unk_token="[U]", eos_token="[E]"
    )
    with pytest.raises(UserError, match=r"expected a tokenizer that splits '\[E\]' in a text"):  # it would be EOS, and not [U]
        count_words(["a [E]"], outside)


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[U]")
