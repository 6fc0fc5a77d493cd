"""Tokenizers: lossless round trips, what a word is, saving and loading, pretrained ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffusionlm.config import UserError, build
from diffusionlm.data.tokenizers import BytePairs, Pretrained, TokenizerRecipe, WordTokenizer, decode_texts, split_words

TEXTS = [
    "The Vaults' pub near Café Adriatic isn't cheap: £20-£25.",
    "It's a 5-star, kid-friendly place (1,000.50 of them)!",
    'Fish & chips at the B&B... "yes" - I can’t, they\'ve 20% or $5?',
    "日本語 mixed in, well--known; 3.5.",
    "  white \t space\n and a mark▁here and cafe\u0301 ",
    "[END] of [PAD] is text",
]
NORMAL = [*TEXTS[:4], "white space and a mark here and café", TEXTS[5]]


def words_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """Return the words of ``text`` in the tokenizer's own pre-tokenisation, by offsets."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return text.split()
    pieces = (text[start:end].strip() for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text))
    return [piece for piece in pieces if piece]


def test_words_are_split_as_every_recipe_does() -> None:
    for text in [*TEXTS, " \n", "£10.50 'salt' mustn't DON'T don", "a▁b  c"]:
        assert split_words(text) == words_of(WordTokenizer().make(TEXTS), text)


def _ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("recipe", [WordTokenizer(), BytePairs(vocab_size=150)])
def test_decoding_gives_back_the_text(recipe: TokenizerRecipe) -> None:
    tokenizer = recipe.make(TEXTS)
    ids = _ids(tokenizer, TEXTS)
    assert decode_texts(tokenizer, ids) == NORMAL
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == NORMAL
    assert all(row[0] == tokenizer.bos_token_id and row[-1] == tokenizer.eos_token_id for row in ids)
    assert not any({tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id} & {*r[:-1]} for r in ids)


@pytest.mark.parametrize("recipe", [WordTokenizer(), BytePairs(vocab_size=150)])
def test_words(recipe: TokenizerRecipe) -> None:
    tokenizer = recipe.make(TEXTS)
    assert words_of(tokenizer, TEXTS[0]) == [
        *["The", "Vaults", "'", "pub", "near", "Café", "Adriatic", "is", "n't", "cheap", ":", "£20-£25", "."]
    ]
    assert words_of(tokenizer, TEXTS[1]) == [
        *["It", "'s", "a", "5-star", ",", "kid-friendly", "place", "(", "1,000.50", "of", "them", ")", "!"]
    ]
    assert words_of(tokenizer, TEXTS[2]) == [
        *["Fish", "&", "chips", "at", "the", "B&B", ".", ".", ".", '"', "yes", '"', "-", "I", "ca", "n’t", ","],
        *["they", "'ve", "20", "%", "or", "$5", "?"],
    ]
    assert words_of(tokenizer, TEXTS[3]) == ["日本語", "mixed", "in", ",", "well", "-", "-", "known", ";", "3.5", "."]
    assert words_of(tokenizer, "£10.50 'salt' mustn't DON'T don") == [
        *["£10.50", "'", "salt", "'", "must", "n't", "DO", "N'T", "don"]
    ]
    assert words_of(tokenizer, " \n") == []


def test_a_word_is_one_token_and_rare_ones_are_unknown() -> None:
    tokenizer = WordTokenizer(min_count=2).make(["the cat, the dog, the end", "a cat"])
    assert tokenizer.convert_ids_to_tokens([*range(len(tokenizer))]) == [
        *["[PAD]", "[UNK]", "[START]", "[END]"],
        *["▁the", ",", "▁cat"],  # By count, then by text.
    ]
    ids = tokenizer("the dog, the cat")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[START]", "▁the", "[UNK]", ",", "▁the", "▁cat", "[END]"]
    assert decode_texts(tokenizer, [ids]) == ["the [UNK], the cat"]


def test_decoding_stops_at_the_first_end_and_hides_padding() -> None:
    tokenizer = WordTokenizer().make(["a b c"])
    a, b, c = (tokenizer.get_vocab()[token] for token in ("▁a", "▁b", "▁c"))
    pad, start, end = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert decode_texts(tokenizer, [[start, a, pad, b, end, c, end, pad], [a, c], [], [start, end]]) == [
        "a b",
        "a c",
        "",
        "",
    ]


def test_unknown_characters_of_byte_pairs() -> None:
    tokenizer = BytePairs().make(["ab ab"])
    assert decode_texts(tokenizer, _ids(tokenizer, ["abz ab"])) == ["ab[UNK] ab"]


@pytest.mark.parametrize("recipe", [WordTokenizer(), BytePairs(vocab_size=150)])
def test_saved_and_loaded(recipe: TokenizerRecipe, tmp_path: Path) -> None:
    made = recipe.make(iter(TEXTS), max_length=48)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.model_max_length == made.model_max_length == 48
    assert _ids(loaded, TEXTS) == _ids(made, TEXTS)
    assert decode_texts(loaded, _ids(made, TEXTS)) == NORMAL
    assert [words_of(loaded, text) for text in TEXTS] == [words_of(made, text) for text in TEXTS]
    assert loaded.special_tokens_map == made.special_tokens_map
    assert recipe.make(TEXTS, 48).get_vocab() == made.get_vocab()


def test_pretrained_with_classifier_and_separator_tokens(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "pub", "##s", ".", "is"]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.save_pretrained(tmp_path / "bert")
    tokenizer = Pretrained(str(tmp_path / "bert")).make([], max_length=32)
    assert len(tokenizer) == len(names)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("[CLS]", "[SEP]", 32)
    ids = tokenizer("The pubs zz is.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "pub", "##s", "[UNK]", "is", ".", "[SEP]"]
    assert decode_texts(tokenizer, [ids]) == ["the pubs [UNK] is."]
    assert words_of(tokenizer, "The pubs is.") == ["the", "pubs", "is", "."]


def test_pretrained_with_one_special_token(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    special = {"unk_token": end, "bos_token": end, "eos_token": end}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.save_pretrained(tmp_path / "gpt")
    tokenizer = Pretrained(str(tmp_path / "gpt")).make([])
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (end, "[END]", "[PAD]", None)
    assert len(tokenizer) == len(vocabulary) + 2  # the tokens that it lacks
    ids = tokenizer("A café.")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert decode_texts(tokenizer, [[*ids, tokenizer.pad_token_id]]) == ["A café."]
    assert words_of(tokenizer, "A café.") == ["A", "café", "."]
    tokenizer.save_pretrained(tmp_path / "ours")
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("A café.")["input_ids"] == ids


def test_byte_pairs_of_a_very_long_word_are_those_of_its_parts() -> None:
    long = BytePairs(40).make(["x" * 9_000])
    assert long.get_vocab() == BytePairs(40).make([" ".join("x" * n for n in (4_000, 4_000, 1_000))]).get_vocab()
    assert decode_texts(long, [long("x" * 9_000)["input_ids"]]) == ["x" * 9_000]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^tokenizer: no tokenizer is called 'word'; did you mean 'words'"):
        build(dict[str, TokenizerRecipe], {"tokenizer": "word"})
    with pytest.raises(UserError, match="^words.min_count: expected 1 or more, got 0"):
        build(dict[str, TokenizerRecipe], {"words": {"name": "words", "min_count": 0}})
    with pytest.raises(UserError, match="^tokenizer.min_count: .*no word 9 times"):
        WordTokenizer(min_count=9).make(["a a"])
    with pytest.raises(UserError, match="^tokenizer: there is no training text"):
        BytePairs().make([" "])
    with pytest.raises(UserError, match="there is no folder '.*nowhere'"):
        Pretrained(str(tmp_path / "nowhere")).make([])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(UserError, match="broken: the tokenizer is missing or damaged"):
        Pretrained(str(tmp_path / "broken")).make([])
