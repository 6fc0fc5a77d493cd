"""Annotators: what a finished text, or a corpus without labels, is said to be."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import datasets  # type: ignore[import-untyped]
import pytest
from nltk.tag import PerceptronTagger
from tiny_runs import restaurant_texts

from diffusionlm.config import UserError, build
from diffusionlm.data.annotators import Annotator, Plain, Tagger, annotated, sentences
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.data.trees import bracket_f1, brackets, tags_of
from diffusionlm.restaurants.annotator import Grammar
from diffusionlm.restaurants.grammar import parse

TAGGED = [
    [("The", "DET"), ("pub", "NOUN"), ("is", "AUX"), ("cheap", "ADJ"), (".", "PUNCT")],
    [("A", "DET"), ("café", "NOUN"), ("serves", "VERB"), ("Thai", "ADJ"), ("food", "NOUN"), (".", "PUNCT")],
    [("It", "PRON"), ("is", "AUX"), ("n't", "PART"), ("dear", "ADJ"), (",", "PUNCT"), ("is", "AUX"), ("it", "PRON")],
]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """Return a tagger trained by NLTK, in the files that it saves."""
    folder = tmp_path_factory.mktemp("tagger")
    model = PerceptronTagger(load=False)
    random.seed(0)
    model.train(TAGGED * 20, nr_iter=5)
    for part, plain in zip(("weights", "tagdict", "classes"), model.encode_json_obj(), strict=True):
        (folder / f"averaged_perceptron_tagger_eng.{part}.json").write_text(json.dumps(plain))
    return Tagger(str(folder))


def test_a_tagger_tags_the_words_that_our_tokenizers_tell_apart(tagger: Tagger) -> None:
    found = tagger.annotate("The café isn't cheap.")
    assert found is not None
    assert found.words == ("The", "café", "is", "n't", "cheap", ".")
    assert found.tags == ("DET", "NOUN", "AUX", "PART", "ADJ", "PUNCT")
    assert found.tree is None and found.attributes is None


def test_words_are_those_of_the_tokenizer() -> None:
    text = "It's 1,000.50 at B&B, isn't it?"
    assert (
        list(Plain().annotate(text).words)
        == [token.strip("▁") for token in WordTokenizer().make([text]).tokenize(text)]
        != text.split()
    )


@pytest.mark.parametrize("left_out", ["weights", "tagdict", "classes"])
def test_a_folder_without_one_of_its_files(tagger: Tagger, left_out: str, tmp_path: Path) -> None:
    for file in Path(tagger.folder).iterdir():
        if left_out not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="expected a tagger's weights.json, tagdict.json and classes.json"):
        Tagger(str(tmp_path)).annotate("The pub.")


def test_a_corpus_gets_the_columns_that_it_has_not(tagger: Tagger) -> None:
    rows = datasets.Dataset.from_dict({"text": ["The pub is cheap.", "A café."], "stars": [1, 2]})
    found = annotated(rows, tagger, ["tags", "stars"])
    assert found["tags"][:] == [["DET", "NOUN", "AUX", "ADJ", "PUNCT"], ["DET", "NOUN", "PUNCT"]]
    assert found["stars"][:] == [1, 2]
    own = datasets.Dataset.from_dict({"text": ["The pub"], "tags": [["X", "Y"]]})
    assert annotated(own, tagger, ["tags"])["tags"][:] == [["X", "Y"]]


def test_what_an_annotator_cannot_tell_is_refused(tagger: Tagger) -> None:
    rows = datasets.Dataset.from_dict({"text": ["The pub is cheap."]})
    with pytest.raises(UserError, match="annotator: 'tagger' gives no tree for 'The pub is cheap.'"):
        annotated(rows, tagger, ["tree"])
    with pytest.raises(UserError, match="annotator: 'grammar' gives no tags"):
        annotated(rows.map(lambda row: {"text": "Not of the grammar."}), Grammar(), ["tags"])


def test_sentences_end_at_their_marks() -> None:
    assert sentences(["It", "is", ".", "Is", "it", "?", "Yes"]) == [["It", "is", "."], ["Is", "it", "?"], ["Yes"]]
    assert sentences([]) == []


def test_trees_of_the_grammar_hold_its_words_and_constituents() -> None:
    description = parse(restaurant_texts(1)[0])
    assert description is not None
    assert tags_of(description.tree) == list(description.tags)
    found = brackets(description.tree)
    first = description.words.index(".")
    assert (0, first, "S") in found, "the first sentence"
    assert bracket_f1(found, found) == 1
    assert bracket_f1(found, found[:-1]) == pytest.approx(2 * (len(found) - 1) / (2 * len(found) - 1))


def test_spacy_is_refused_where_it_is_missing() -> None:
    if importlib.util.find_spec("spacy"):
        pytest.skip("spaCy is installed")
    with pytest.raises(UserError, match=r"annotator: 'spacy' needs spaCy: pip install 'diffusion-lm\[spacy\]'"):
        build(Annotator, {"name": "spacy"}).annotate("The pub.")
