"""Frames: how they are written, which are kept, and that those of the embedded corpus tell constituents."""

from __future__ import annotations

import datasets  # type: ignore[import-untyped]
from test_labels import records

from diffusionlm.data.batches import encode
from diffusionlm.data.labels import Field, Labelled, SpanLabels
from diffusionlm.data.tokenizers import Words
from diffusionlm.data.trees import brackets, tags_of
from diffusionlm.models.classifier.templates import FEWEST, find_templates, frame, list_templates, span_places

TAGS = ["DET", "NOUN", "AUX", "ADV", "ADJ", "PUNCT"]


def row(tags: list[str], spans: dict[tuple[int, int], str]) -> Labelled:
    """Return a text whose ``spans`` are counted from START."""
    return Labelled([2, *range(4, 4 + len(tags)), 3], {"tree": spans}, [None, *tags, None])


def test_frames_as_they_are_written() -> None:
    assert frame(TAGS, 0, 1) == "^ DET NOUN AUX"
    assert frame(TAGS, 2, 4) == "NOUN AUX ADV ADJ PUNCT"
    assert frame(TAGS, 0, 5) == "^ DET NOUN AUX ADV ADJ PUNCT $"
    assert frame([*"abcdefghij"], 0, 9) == "^ a b c d * * g h i j $"


def test_frames_that_are_common_and_sure_are_kept_and_the_surest_where_none_is() -> None:
    sure = [row(TAGS, {(1, 2): "NP", (3, 5): "S::VP"})] * FEWEST
    chain = ["NOUN AUX ADV ADJ PUNCT"]
    assert find_templates(sure, "tree") == {"NP": ["^ DET NOUN AUX"], "S": chain, "VP": chain}
    assert find_templates(sure[1:], "tree") == {}
    seldom = [*sure, *[row(TAGS, {(3, 5): "VP"})] * (2 * FEWEST)]
    assert find_templates(seldom, "tree")["NP"] == ["^ DET NOUN AUX"], "a third of the places, and there is no better one"
    better = [row(["PRON", "NOUN", "AUX"], {(1, 2): "NP"})] * FEWEST
    assert find_templates([*seldom, *better], "tree")["NP"] == ["^ PRON NOUN AUX"]
    assert find_templates([Labelled([2, 4, 5, 3], {"tree": {(1, 2): "S"}})], "tree") == {}, "a tree need not tell tags"


def test_constituents_are_counted_by_frame_and_by_the_length_of_their_texts_and_in_frames_alone() -> None:
    longer = [*TAGS, "PUNCT"]
    rows = [row(TAGS, {(1, 2): "NP", (3, 5): "S::VP", (6, 6): "X"})] * 3 + [row(longer, {(1, 2): "NP"})] * 2
    values, frames = ["", "NP", "S::VP", "X"], {"NP": ["^ DET NOUN AUX"]}
    all_texts = [[0, 0, 0, 0, 8, 3], [0, 0, 0, 0, 9, 2]]
    chains = [[3, 5, 2, 0, 8, 3]]  # of which no frame is known
    noun_phrases = [[1, 2, 1, 1, 8, 3], [1, 2, 1, 1, 9, 2]]
    assert span_places(rows, "tree", values, frames).tolist() == [*all_texts, *noun_phrases, *chains]
    other = {"NP": ["^ PRON NOUN AUX"], "VP": ["NOUN AUX ADV ADJ PUNCT"]}
    assert list_templates(other) == ["NOUN AUX ADV ADJ PUNCT", "^ PRON NOUN AUX"]
    framed = [[3, 5, 2, 1, 8, 3]]
    assert span_places(rows, "tree", values, other).tolist() == [*all_texts, *framed]
    bare = [Labelled(list(each), each.labels) for each in rows]
    untagged = [[1, 2, 1, 0, 8, 3], [1, 2, 1, 0, 9, 2]]
    assert span_places(bare, "tree", values, other).tolist() == [*all_texts, *untagged, *chains]


def test_frames_of_the_embedded_corpus_tell_constituents_of_other_texts() -> None:
    rows = datasets.Dataset.from_list(records(1000))
    tokenizer = Words().make(rows["text"][:])
    seen, other = rows.select(range(800)), records(1000)[800:]
    labelled = SpanLabels().read(seen, encode(seen["text"][:], tokenizer), tokenizer, [Field("tree")])
    frames = find_templates(labelled, "tree")
    right = told = constituents = 0
    for record in other:
        tags, gold = tags_of(record["tree"]), set(brackets(record["tree"]))
        constituents += sum(first < last for first, last, _ in gold)
        for first in range(len(tags)):
            for last in range(first + 1, len(tags)):
                found = [label for label, known in frames.items() if frame(tags, first, last) in known]
                told += len(found)
                right += sum((first, last, label) in gold for label in found)
    assert right / told > 0.95
    assert right / constituents > 0.5
