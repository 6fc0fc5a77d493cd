"""Tokenizers of a given vocabulary: spaCy's rules, their exceptions, line ends, and texts that come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from originals import vocabulary

from diffusionlm.config import UserError
from diffusionlm.data.tokenizers import decode_texts, load_tokenizer
from diffusionlm.data.vocabularies import read_vocabulary, unreadable_words, vocabulary_tokenizer

TEXTS = {  # each with the tokens of spaCy 3.8's English()
    "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.":
        "The Vaults pub near Café Adriatic has a 5 star rating . Prices start at £ 30 .",
    "It's £20-25, a family-friendly B&B; don't go!": "It 's £ 20 - 25 , a family - friendly B&B ; do n't go !",
    "They're 1,000.50% \"sure\" -- no... (see U.S. law)": "They 're 1,000.50 % \" sure \" -- no ... ( see U.S. law )",
    "Mr. Smith's o'clock at 3:30pm, the co-op's and/or 5/5.": "Mr. Smith 's o'clock at 3:30pm , the co - op 's and/or 5/5 .",
    "a.m. it ended.Then we left": "a.m. it ended . Then we left",
}  # fmt: skip
SPLIT = [word for tokens in TEXTS.values() for word in tokens.split()]


def words_of(folder: Path, words: list[str]) -> dict[str, int]:
    path = folder / "vocab.json"
    path.write_text(json.dumps(vocabulary(list(dict.fromkeys(words)))))
    return read_vocabulary(path)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_split_as_spacy_splits_them_and_split_texts_stay(text: str, tmp_path: Path) -> None:
    words = words_of(tmp_path, SPLIT)
    tokenizer = vocabulary_tokenizer(words, 64)
    expected = [words[word] for word in TEXTS[text].split()]
    for form in (text, TEXTS[text], f"  {text} \n"):
        assert tokenizer(form, add_special_tokens=False)["input_ids"] == expected
    assert decode_texts(tokenizer, [expected]) == [TEXTS[text]]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved")(text)["input_ids"] == [words["[START]"], *expected, words["[END]"]]


def test_words_of_the_vocabulary_that_the_rules_would_split_stay_whole(tmp_path: Path) -> None:
    tokenizer = vocabulary_tokenizer(words_of(tmp_path, ["p.m", "p.m.", ":)", "e-mail", "(", "e", "-"]), 64)
    tokens = ["p.m.", "[UNK]", "(", "e-mail", ":)"]
    assert tokenizer.tokenize("p.m., (e-mail :)") == tokens
    assert tokenizer.tokenize("e-mails") == ["e", "-", "[UNK]"]


def test_the_names_of_special_tokens_are_ordinary_words_of_a_text(tmp_path: Path) -> None:
    words = words_of(tmp_path, ["the"])
    assert [words[name] for name in ("[START]", "[END]", "[UNK]", "[PAD]")] == [0, 1, 2, 3]
    tokenizer = vocabulary_tokenizer(words, 64)
    assert tokenizer("the END [END] PAD", add_special_tokens=False)["input_ids"] == [4, 2, 2, 2, 2, 2]


def test_a_line_end_ends_each_text_that_is_read_and_none_that_is_written(tmp_path: Path) -> None:
    words = words_of(tmp_path, ["cheap", ".", "\n"])
    with_end, without = vocabulary_tokenizer(words, 64, line_end=True), vocabulary_tokenizer(words, 64)
    assert with_end("cheap.\n", add_special_tokens=False)["input_ids"] == [4, 5, 6]
    assert without("cheap.\n", add_special_tokens=False)["input_ids"] == [4, 5]
    assert with_end("  ", add_special_tokens=False)["input_ids"] == []
    assert decode_texts(with_end, [[0, 4, 5, 6, 1, 3], [0, 6, 1], [0, 1]]) == ["cheap .", "", ""]


def test_words_of_white_space_are_named(tmp_path: Path) -> None:
    words = words_of(tmp_path, ["cheap", "  ", "\n", "two words", "a\tb", "C++"])
    for line_end in (False, True):
        assert unreadable_words(vocabulary_tokenizer(words, 64, line_end), words) == ["  ", "two words", "a\tb"]


def test_words_of_any_characters_are_read(tmp_path: Path) -> None:
    words = words_of(
        tmp_path, ["a~b", "a#b", "c$d", "x^y", "C++", "a|b", "A*", "{x}", "[a]", "\\n", "a\\b", "a&&b", ":-)", "e\u0301"]
    )
    tokenizer = vocabulary_tokenizer(words, 64)
    for word, number in [*words.items()][4:]:
        assert tokenizer(f"{word} {word}", add_special_tokens=False)["input_ids"] == [number, number]


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ({"START": 0, "END": 1, "UNK": 2, "the": 3}, "expected the words START, END, UNK, PAD, but there is no PAD"),
        ({**vocabulary(["the"]), "[PAD]": 5}, "expected only one of '[PAD]' and 'PAD', got both"),
        ({**vocabulary(["the"]), "a": 7}, "expected the ids 0 to 5, each of one word"),
        ({**vocabulary(["the"]), "a": 4}, "expected the ids 0 to 5, each of one word"),
        ({**vocabulary(["the"]), "a": "5"}, "expected the id of each word, got '5' for 'a'"),
        ({**vocabulary(["the"]), "a": True}, "expected the id of each word, got True for 'a'"),
        (vocabulary([]), "expected words beside the special ones, got none"),
        (["the"], "expected a JSON object"),
    ],
)
def test_a_vocabulary_with_a_fault_is_refused(plain: object, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError) as caught:
        read_vocabulary(path)
    assert str(path) in str(caught.value) and sentence in str(caught.value)
