"""What classifiers learn from: spans of trees, labels in their places, sentences for columns that do not fit."""

from __future__ import annotations

import gzip
import json
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
from tiny_runs import ROOT

from diffusionlm.config import UserError
from diffusionlm.data.batches import encode
from diffusionlm.data.labels import (
    Field,
    Labelled,
    Labels,
    SpanLabels,
    TextLabels,
    TokenLabels,
    check_vocabulary,
    fields_of,
)
from diffusionlm.data.tokenizers import BytePairs, WordTokenizer
from diffusionlm.data.trees import spans_of

TEXTS, TOKENS, SPANS = TextLabels(), TokenLabels(), SpanLabels()
TREE = "(ROOT (S (NP (DET The) (NOUN food)) (VP (AUX is) (ADJP (ADJ good))) (PUNCT .)))"
TEXT = "The food is good."
TAGS = ["DET", "NOUN", "AUX", "ADJ", "PUNCT"]


def records(count: int) -> list[dict[str, Any]]:
    with gzip.open(ROOT / "data" / "restaurants" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(next(lines)) for _ in range(count)]


def test_spans_of_a_tree() -> None:
    assert spans_of(TREE) == [(0, 4, "S"), (0, 1, "NP"), (2, 3, "VP"), (3, 3, "ADJP")]
    chain = "(ROOT (S (VP (VERB Go) (ADVP (ADV there)))))"
    assert spans_of(chain) == [(0, 1, "S::VP"), (1, 1, "ADVP")]
    assert spans_of("( (S (NP Sam Smith) (VP left)))") == [(0, 2, "S"), (0, 1, "NP")]


@pytest.mark.parametrize("wrong", ["", "The food is good.", "(S (NP (DET The)", "(S (NP x)))", "(S x) (S y)"])
def test_what_is_no_tree_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^tree: expected one tree in matching brackets"):
        spans_of(wrong)


def test_a_corpus_tree_gives_back_its_words() -> None:
    for record in records(200):
        words, spans = record["words"], spans_of(record["tree"])
        assert all(0 <= i <= j < len(words) for i, j, _ in spans)
        assert len({(i, j) for i, j, _ in spans}) == len(spans)
        nested = all(a[1] < b[0] or (a[0] <= b[0] and b[1] <= a[1]) for n, a in enumerate(spans) for b in spans[n + 1 :])
        assert nested, spans
        for i, j, label in spans:
            assert "(" + label.split("::")[0] in record["tree"]
            pieces = record["tree"].replace("(", " ").replace(")", " ").split()
            assert set(words[i : j + 1]) <= set(pieces)


def _labelled(labels: Labels, column: str, records: list[dict[str, Any]], max_length: int = 64) -> Any:
    rows = datasets.Dataset.from_list(records)
    texts = rows["text"][:]
    tokenizer = WordTokenizer().make(texts)
    return labels.read(rows, encode(texts, tokenizer, max_length), tokenizer, [Field(column)]), tokenizer


def test_each_word_has_its_tag() -> None:
    stored = records(100)
    rows, tokenizer = _labelled(TOKENS, "tags", stored)
    for row, record in zip(rows, stored, strict=True):
        assert row.labels["tags"] == [None, *record["tags"], None]
        tokens = [token.removeprefix("▁") for token in tokenizer.convert_ids_to_tokens(row)]
        assert tokens == ["[START]", *record["words"], "[END]"]


def test_the_first_piece_of_a_word_has_its_tag() -> None:
    tokenizer = BytePairs(1).make(["ab", "a", "b"])
    rows = datasets.Dataset.from_list([{"text": "ab b", "tags": ["X", "Y"], "tree": "(S (X ab) (NP (Y b)))"}])
    encoded = encode(["ab b"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids[0]) == ["[START]", "▁", "a", "b", "▁", "b", "[END]"]
    (row,) = TOKENS.read(rows, encoded, tokenizer, [Field("tags")])
    assert row.labels["tags"] == [None, "X", None, None, "Y", None, None]
    (row,) = SPANS.read(rows, encoded, tokenizer, [Field("tree")])
    assert row.labels["tree"] == {(1, 5): "S", (4, 5): "NP"}


def test_spans_stand_one_position_after_their_words_and_are_cut_with_the_text() -> None:
    (row,), _ = _labelled(SPANS, "tree", [{"text": TEXT, "tree": TREE}])
    assert row.labels["tree"] == {(1, 5): "S", (1, 2): "NP", (3, 4): "VP", (4, 4): "ADJP"}
    (cut,), _ = _labelled(SPANS, "tree", [{"text": TEXT, "tree": TREE}], 5)
    assert cut.labels["tree"] == {(1, 2): "NP"}


def test_a_tree_need_not_tell_tags() -> None:
    (row,), _ = _labelled(SPANS, "tree", [{"text": "The food pleases", "tree": "(S (NP The food) (VP pleases))"}])
    assert row.labels["tree"] == {(1, 3): "S", (1, 2): "NP"} and row.tags is None
    (row,), _ = _labelled(SPANS, "tree", [{"text": TEXT, "tree": TREE}])
    assert row.tags == [None, *TAGS, None]


def test_pieces_of_a_split_text_keep_their_own_labels() -> None:
    rows = datasets.Dataset.from_list(
        [{"text": TEXT, "tree": TREE, "tags": TAGS}, {"text": "The food.", "tags": TAGS[:2] + TAGS[-1:]}]
    )
    tokenizer = WordTokenizer().make(rows["text"][:])
    encoded = encode(rows["text"][:], tokenizer, 5, "split")
    tagged = TOKENS.read(rows, encoded, tokenizer, [Field("tags")])
    assert [row.labels["tags"][1:-1] for row in tagged] == [TAGS[:3], TAGS[3:], ["DET", "NOUN", "PUNCT"]]
    one = rows.select([0])
    spans = SPANS.read(one, encode([TEXT], tokenizer, 4, "split"), tokenizer, [Field("tree")])
    assert [row.labels["tree"] for row in spans] == [{(1, 2): "NP"}, {(1, 2): "VP", (2, 2): "ADJP"}, {}]


def test_a_column_of_mappings_stands_for_its_keys() -> None:
    rows = datasets.Dataset.from_list(records(50))
    names = [field.name for field in fields_of(rows, ["attributes"], TEXTS)]
    assert names == [f"attributes.{key}" for key in ("area", "family", "food", "name", "near", "price", "rating", "type")]
    assert fields_of(rows, ["attributes.food", "attributes.area"], TEXTS) == [
        Field("attributes", "area"),
        Field("attributes", "food"),
    ]
    (row, *_), _ = _labelled(TEXTS, "text", records(1))
    assert row.labels == {"text": records(1)[0]["text"]}


@pytest.mark.parametrize(
    ("names", "labels", "sentence"),
    [
        (["atributes.food"], TEXTS, r"^labels: the corpus has no column 'atributes'; did you mean 'attributes'\?"),
        (
            ["attributes.foot"],
            TEXTS,
            r"^labels: no text of the corpus has 'foot' in its attributes; did you mean 'food'\?",
        ),
        (["text.food"], TEXTS, r"^labels: expected mappings in the column 'text' to take 'food' from"),
        (
            ["tags"],
            TEXTS,
            r"^labels: head 'sequence' expects a word or a number for each text, but the column 'tags' holds \[",
        ),
        (["text"], TOKENS, r"^labels: head 'token' expects a list of words for each text, but the column 'text' holds "),
        (["tags"], SPANS, r"^labels: head 'span' expects a bracketed tree"),
    ],
)
def test_columns_that_do_not_fit(names: list[str], labels: Labels, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fields_of(datasets.Dataset.from_list(records(20)), names, labels)


def test_other_numbers_of_words_and_other_languages_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^labels: text 0 \('The food is good\.'\) has 5 words for this tokenizer, but labels for 4"
    ):
        _labelled(TOKENS, "tags", [{"text": TEXT, "tags": TAGS[:4]}])
    with pytest.raises(UserError, match=r"^labels: text 0 .* expected one tree in matching brackets"):
        _labelled(SPANS, "tree", [{"text": TEXT, "tree": "(S"}])
    with pytest.raises(UserError, match=r"has 5 words for this tokenizer, but labels for 2"):
        _labelled(SPANS, "tree", [{"text": TEXT, "tree": "(S (X a) (Y b))"}])
    tokenizer = WordTokenizer().make([TEXT])
    check_vocabulary(encode([TEXT], tokenizer).ids, tokenizer, "runs/x")
    with pytest.raises(UserError, match=r"^data\.corpus: 75% of its words are unknown to runs/x"):
        check_vocabulary(encode(["Il cibo è good"], tokenizer).ids, tokenizer, "runs/x")


def test_values_go_by_frequency_and_rare_ones_are_other() -> None:
    rows = [Labelled([1], {"x": value}) for value in ["a", "b", "b", "b", "", "", "c"]]
    assert TEXTS.values(rows, "x", 2) == ["b", "", "other"]
    assert TEXTS.values(rows, "x", 1) == ["b", "", "a", "c"]
    tags = [Labelled([1], {"x": [None, "N", "V", "N", None]})]
    assert TOKENS.values(tags, "x", 1) == ["N", "V"]
    spans = [Labelled([1], {"x": {(1, 2): "NP", (1, 1): "S::VP"}}), Labelled([1], {"x": {(1, 3): "NP"}})]
    assert SPANS.values(spans, "x", 2) == ["", "NP", "other"]
