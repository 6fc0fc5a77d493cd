"""Templates: their form, which are kept, and that they identify constituents, in the restaurants corpus and in another."""

from __future__ import annotations

import random

import datasets  # type: ignore[import-untyped]
import pytest
from test_labels import records

from diffusionlm.data.batches import encode
from diffusionlm.data.labels import Field, Labelled, SpanLabels
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.data.trees import brackets, spans_of, tags_of
from diffusionlm.models.classifier.templates import MIN_COUNT, find_templates, list_templates, span_places, template

TAGS = ["DET", "NOUN", "AUX", "ADV", "ADJ", "PUNCT"]


def row(tags: list[str], spans: dict[tuple[int, int], str]) -> Labelled:
    """Return a text whose ``spans`` are counted from START."""
    return Labelled([2, *range(4, 4 + len(tags)), 3], {"tree": spans}, [None, *tags, None])


def test_the_form_of_templates() -> None:
    assert template(TAGS, 0, 1) == "^ DET NOUN AUX"
    assert template(TAGS, 2, 4) == "NOUN AUX ADV ADJ PUNCT"
    assert template(TAGS, 0, 5) == "^ DET NOUN AUX ADV ADJ PUNCT $"
    assert template([*"abcdefghij"], 0, 9) == "^ a b c d * * g h i j $"


def test_frequent_and_precise_templates_are_kept_and_the_most_precise_where_none_is() -> None:
    sure = [row(TAGS, {(1, 2): "NP", (3, 5): "S::VP"})] * MIN_COUNT
    chain = ["NOUN AUX ADV ADJ PUNCT"]
    assert find_templates(sure, "tree") == {"NP": ["^ DET NOUN AUX"], "S": chain, "VP": chain}
    assert find_templates(sure[1:], "tree") == {}
    seldom = [*sure, *[row(TAGS, {(3, 5): "VP"})] * (2 * MIN_COUNT)]
    assert find_templates(seldom, "tree")["NP"] == ["^ DET NOUN AUX"], "a third of the places, and there is no better one"
    better = [row(["PRON", "NOUN", "AUX"], {(1, 2): "NP"})] * MIN_COUNT
    assert find_templates([*seldom, *better], "tree")["NP"] == ["^ PRON NOUN AUX"]
    assert find_templates([Labelled([2, 4, 5, 3], {"tree": {(1, 2): "S"}})], "tree") == {}, "a tree need not tell tags"


def test_constituents_are_counted_by_template_and_text_length() -> None:
    longer = [*TAGS, "PUNCT"]
    rows = [row(TAGS, {(1, 2): "NP", (3, 5): "S::VP", (6, 6): "X"})] * 3 + [row(longer, {(1, 2): "NP"})] * 2
    values, templates = ["", "NP", "S::VP", "X"], {"NP": ["^ DET NOUN AUX"]}
    all_texts = [[0, 0, 0, 0, 8, 3], [0, 0, 0, 0, 9, 2]]
    chains = [[3, 5, 2, 0, 8, 3]]  # which has no template
    noun_phrases = [[1, 2, 1, 1, 8, 3], [1, 2, 1, 1, 9, 2]]
    assert span_places(rows, "tree", values, templates).tolist() == [*all_texts, *noun_phrases, *chains]
    other = {"NP": ["^ PRON NOUN AUX"], "VP": ["NOUN AUX ADV ADJ PUNCT"]}
    assert list_templates(other) == ["NOUN AUX ADV ADJ PUNCT", "^ PRON NOUN AUX"]
    placed = [[3, 5, 2, 1, 8, 3]]
    assert span_places(rows, "tree", values, other).tolist() == [*all_texts, *placed]
    bare = [Labelled(list(each), each.labels) for each in rows]
    untagged = [[1, 2, 1, 0, 8, 3], [1, 2, 1, 0, 9, 2]]
    assert span_places(bare, "tree", values, other).tolist() == [*all_texts, *untagged, *chains]


def test_templates_of_the_restaurants_corpus_identify_constituents_of_held_out_texts() -> None:
    rows = datasets.Dataset.from_list(records(1000))
    tokenizer = WordTokenizer().make(rows["text"][:])
    seen, other = rows.select(range(800)), records(1000)[800:]
    labelled = SpanLabels().read(seen, encode(seen["text"][:], tokenizer), tokenizer, [Field("tree")])
    templates = find_templates(labelled, "tree")
    right = told = constituents = 0
    for record in other:
        tags, gold = tags_of(record["tree"]), set(brackets(record["tree"]))
        constituents += sum(first < last for first, last, _ in gold)
        for first in range(len(tags)):
            for last in range(first + 1, len(tags)):
                found = [label for label, known in templates.items() if template(tags, first, last) in known]
                told += len(found)
                right += sum((first, last, label) in gold for label in found)
    assert right / told > 0.95
    assert right / constituents > 0.5


def penn_trees(count: int) -> list[str]:
    """Return trees of a small grammar with tags and labels of the Penn Treebank, none of them in the restaurants corpus."""
    draw = random.Random(0)

    def noun_phrase(depth: int = 0) -> str:
        head = draw.choice(["(DT the) (NN court)", "(DT a) (JJ new) (NN law)", "(NNP Smith)", "(PRP$ its) (NNS shares)"])
        return f"(NP (NP {head}) (PP (IN of) {noun_phrase(1)}))" if not depth and draw.random() < 0.3 else f"(NP {head})"

    verbs = ["(VBD rose)", "(VBZ sells)", "(MD will) (VP (VB buy) {})", "(VBD said) (SBAR (IN that) {})"]
    trees = []
    for _ in range(count):
        verb = draw.choice(verbs)
        verb = verb.format(f"(S {noun_phrase()} (VP (VBD fell)))" if "SBAR" in verb else noun_phrase())
        trees.append(f"(S {noun_phrase()} (VP {verb} (ADVP (RB sharply) (RB again))) (. .))")
    return trees


def accuracy_of_templates(trees: list[str], seen: int) -> tuple[float, float]:
    """Return precision and recall on the later trees of the templates of the first ``seen``."""
    labelled = [row(tags_of(tree), {(i + 1, j + 1): label for i, j, label in spans_of(tree)}) for tree in trees[:seen]]
    templates, right, found, gold = find_templates(labelled, "tree"), 0, 0, 0
    for tree in trees[seen:]:
        tags = tags_of(tree)
        spans = {(i, j, label) for i, j, chain in spans_of(tree) for label in chain.split("::") if i < j}
        ends = [(i, j) for i in range(len(tags)) for j in range(i + 1, len(tags))]
        told = {(i, j, label) for i, j in ends for label, known in templates.items() if template(tags, i, j) in known}
        right, found, gold = right + len(told & spans), found + len(told), gold + len(spans)
    return right / found, right / gold


def test_templates_of_a_treebank_with_other_tags_and_labels() -> None:
    precision, recall = accuracy_of_templates(penn_trees(600), 400)
    assert precision > 0.9
    assert recall > 0.6


def test_templates_of_the_penn_treebank_sample() -> None:
    nltk = pytest.importorskip("nltk")
    try:
        parsed = nltk.corpus.treebank.parsed_sents()[:1500]
    except LookupError:
        pytest.skip("the NLTK treebank sample is not installed")
    trees = [" ".join(str(tree).split()) for tree in parsed if len(tree.leaves()) <= 25]
    precision, recall = accuracy_of_templates(trees, len(trees) - 200)
    # Measured: .837 and .052. In 629 sentences of newspaper text few tag sequences are frequent enough to be a template.
    assert precision > 0.75
    assert recall > 0.04
