"""Tests of the restaurant grammar, its recogniser and the corpus drawn from it."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffusionlm.restaurants.grammar import (
    ATTRIBUTES,
    GRAMMAR,
    LONGEST,
    SHORTEST,
    Description,
    Word,
    accepts,
    generate,
    join,
    parse,
    parses,
    tokenize,
)

DATA = Path(__file__).resolve().parents[2] / "data"
SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}
UNIVERSAL_TAGS = set(
    ["NOUN", "PROPN", "VERB", "AUX", "ADJ", "ADV", "ADP", "DET", "PRON", "CCONJ", "SCONJ", "NUM", "PART", "PUNCT"]
)
PHRASE_LABELS = set(["ROOT", "S", "NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "WHNP", "WHADVP", "QP"])
GOOD = "The Golden Lion is a small Italian pub near the old bridge. The staff are friendly."


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict[str, Any]]]:
    """Read the three splits as JSON records."""
    splits = {}
    for name in SIZES:
        with gzip.open(DATA / "restaurants" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            splits[name] = [json.loads(line) for line in lines]
    return splits


@pytest.fixture(scope="module")
def pipeline() -> dict[str, Any]:
    """Load the script that writes the corpus."""
    return runpy.run_path(str(DATA / "write_restaurants.py"))


def slot(group: str) -> list[str]:
    """List the words of a lexicon group."""
    return [word.form for alternative in GRAMMAR[group] for word in alternative.parts if isinstance(word, Word)]


def test_sizes_and_distinct_texts(corpus: dict[str, list[dict[str, Any]]]) -> None:
    assert {name: len(records) for name, records in corpus.items()} == SIZES
    assert len({record["text"] for records in corpus.values() for record in records}) == sum(SIZES.values())


def test_vocabulary_and_lengths(corpus: dict[str, list[dict[str, Any]]]) -> None:
    counts = Counter(word for record in corpus["train"] for word in record["words"])
    assert sum(count >= 20 for count in counts.values()) >= 400
    for name, records in corpus.items():
        lengths = [len(record["words"]) for record in records]
        assert min(lengths) >= SHORTEST and max(lengths) <= LONGEST
        assert 18 <= sum(lengths) / len(lengths) <= 22
        assert {word for record in records for word in record["words"]} <= counts.keys(), name


def test_words_tags_and_leaves_align(corpus: dict[str, list[dict[str, Any]]]) -> None:
    for record in (record for records in corpus.values() for record in records):
        leaves = re.findall(r"\((\S+) ([^()\s]+)\)", record["tree"])
        assert leaves == list(zip(record["tags"], record["words"], strict=True))
        assert set(record["tags"]) <= UNIVERSAL_TAGS
        assert set(re.findall(r"\((\S+) \(", record["tree"])) <= PHRASE_LABELS
        assert record["tree"].count("(") == record["tree"].count(")")
        assert tokenize(record["text"]) == record["words"] and join(record["words"]) == record["text"]
        assert set(record["attributes"]) <= set(ATTRIBUTES)


def test_parse_returns_the_stored_description(corpus: dict[str, list[dict[str, Any]]]) -> None:
    for record in (*corpus["validation"], *corpus["test"], *corpus["train"][::4]):
        found = list(parses(record["text"]))
        assert len(found) == 1, f"ambiguous or rejected: {record['text']}"
        assert found[0].to_dict() == record
        assert found[0] == Description.from_dict(record) == parse(record["text"])


def test_what_is_generated_is_parsed() -> None:
    random_source = random.Random(7)
    for _ in range(2_000):
        description = generate(random_source)
        assert list(parses(description.text)) == [description]


def test_attributes_of_a_known_text() -> None:
    description = parse(
        "The Golden Lion, a cheap Thai café in the northern quarter opposite the old bridge, "
        "is popular with students because it is rated five stars."
    )
    assert description is not None
    assert description.attributes == {
        "name": "The Golden Lion",
        "type": "café",
        "food": "Thai",
        "price": "low",
        "rating": "high",
        "area": "northern",
        "near": "the old bridge",
    }
    negated = parse("The Blue Swan is a Greek bistro. It is not expensive but does not welcome children.")
    assert negated is not None
    assert negated.attributes == {
        "name": "The Blue Swan",
        "type": "bistro",
        "food": "Greek",
        "price": "low",
        "family": "no",
    }


def test_every_attribute_takes_several_values(corpus: dict[str, list[dict[str, Any]]]) -> None:
    for field in ATTRIBUTES:
        values = Counter(record["attributes"].get(field) for record in corpus["train"])
        assert len(values) > 2 and min(values.values()) >= (20 if field not in ("name", "near") else 1), field


def test_there_are_over_a_thousand_million_texts() -> None:
    # One sentence pattern with a free choice in every slot already holds this many texts: the choices are single
    # words in fixed places, so different choices give different texts.
    pattern = "The {} {} is a {} {} {} {} the {} {}. The {} are {} {}."
    groups = "name-first name-second style food type near-word landmark-adjective landmark staff-many degree staff-good"
    slots = [slot(group) for group in groups.split()]
    assert all(len(words) == len(set(words)) for words in slots)
    assert math.prod(len(words) for words in slots) >= 1e9
    random_source = random.Random(3)
    for place, words in enumerate(slots):
        for word in words:
            choice = [random_source.choice(others) for others in slots]
            choice[place] = word
            text = pattern.format(*choice)
            assert accepts(re.sub(r"\ba (?=[aeiou])", "an ", text)), text


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "There is an old-fashioned Turkish inn called The Red Fox on the waterfront. A meal costs £20-25.",
        "If you like fresh Thai food, try The Blue Owl, a kid-friendly café. It is cheap.",
        "Located in the city centre, The Merry Crow serves Greek dishes. Children are not welcome.",
        "Avoid The Old Ship, a busy pub by the main park, because the soup is bland.",
        "Although the rooms are gloomy, The Royal Oak near the old castle is loved by tourists.",
        GOOD.replace("The staff are friendly", "It is cheap but does not welcome children"),
        GOOD.replace("The staff are friendly", "Although the staff are rude, the rooms are tidy"),
        GOOD.replace("The staff are friendly", "The staff are never rude, and the rooms are tidy"),
        GOOD.replace("The staff are friendly", "It is loved by students because the staff are polite"),
        GOOD.replace("The staff are friendly", "Guests praise the tidy rooms and the polite waiters"),
        GOOD.replace("The staff are friendly", "A meal costs less than £20"),
    ],
)
def test_accepts(text: str) -> None:
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is cheap.",
        GOOD.lower(),
        GOOD + " ",
        GOOD.replace(" is", "  is"),
        GOOD.replace("bridge.", "bridge ."),
        GOOD.removesuffix("."),
        GOOD + " " + "The staff are friendly.",
        GOOD.replace("a small", "an small"),
        GOOD.replace("a small Italian", "a Italian"),
        GOOD.replace("Lion is", "Lion"),
        GOOD.replace("is a", "are a"),
        GOOD.replace(". The staff", ". the staff"),
        GOOD.replace("The Golden", "the Golden"),
        GOOD.replace("Golden", "golden"),
        GOOD.replace("is a", "Is a"),
        GOOD.replace("Italian", "italian"),
        GOOD.replace("pub", "zebra"),
        GOOD.replace("pub", "pub pub"),
        GOOD.replace("small Italian", "Italian small"),
        GOOD.replace("staff are", "staff is"),
        GOOD.replace("staff are", "chef are"),
        GOOD.replace("friendly.", "polite and."),
        GOOD.replace("staff are friendly", "staff are tasty"),
        GOOD.replace("staff are friendly", "staff are friendly, and the waiters are polite"),
        GOOD.replace("near the old bridge", "near the old bridge near the new park"),
        GOOD.replace("near the old bridge", "near the old bridge in the city centre"),
        GOOD.replace("The staff are friendly", "It stands near the old bridge"),
        GOOD.replace("small", "cheap").replace("The staff are friendly", "It is expensive"),
        GOOD.replace("small", "cheap").replace("The staff are friendly", "The prices are low"),
        GOOD.replace("small", "kid-friendly").replace("The staff are friendly", "It does not welcome children"),
        GOOD.replace("The staff are friendly", "It is cheap and is inexpensive"),
        GOOD.replace("The staff are friendly", "It is cheap but welcomes children"),
        GOOD.replace("The staff are friendly", "Although the staff are polite, the rooms are tidy"),
        GOOD.replace("The staff are friendly", "The staff are polite, but the rooms are tidy"),
        GOOD.replace("The staff are friendly", "The staff are rude, and the rooms are tidy"),
        GOOD.replace("The staff are friendly", "The staff are never rude, but the rooms are tidy"),
        GOOD.replace("The staff are friendly", "It is loved by students because the staff are rude"),
        GOOD.replace("The staff are friendly", "Guests praise the tidy rooms and the clean garden"),
        GOOD.replace("The staff are friendly", "A meal costs less than £50"),
        "Try The Blue Owl, an Italian café, because the Blue Owl is cheap.",
        "The Blue Owl, an Italian café, serves Italian food. The staff are friendly.",
        "Thai dishes is served at The Blue Owl near the old bridge. The staff are friendly.",
    ],
)
def test_rejects(text: str) -> None:
    assert not accepts(text)
    assert parse(text) is None


@pytest.mark.parametrize(("damage", "most_accepted"), [("drop", 0.1), ("swap", 0.01), ("repeat", 0.0)])
def test_damaged_texts_are_mostly_rejected(corpus: dict[str, list[dict[str, Any]]], damage: str, most_accepted: float) -> None:
    random_source = random.Random(5)
    accepted = 0
    for record in corpus["test"]:
        words = list(record["words"])
        place = random_source.randrange(len(words) - 1)
        if damage == "drop":
            del words[place]
        elif damage == "swap":
            words[place : place + 2] = words[place + 1], words[place]
        else:
            words.insert(place, words[place])
        found = parse(join(words))
        accepted += found is not None
        assert found is None or list(found.words) == words
    assert accepted <= most_accepted * len(corpus["test"])


def test_combinations_of_test_are_unseen(corpus: dict[str, list[dict[str, Any]]], pipeline: dict[str, Any]) -> None:
    def combinations(name: str) -> set[frozenset[tuple[str, str]]]:
        return {
            frozenset((field, value) for field, value in record["attributes"].items() if field not in ("name", "near"))
            for record in corpus[name]
        }

    assert len(combinations("test")) >= 100
    assert not combinations("test") & (combinations("train") | combinations("validation"))
    for name, records in corpus.items():
        assert all(pipeline["is_for_test"](Description.from_dict(each)) == (name == "test") for each in records)


def test_writing_again_gives_the_same_files(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["write"](tmp_path)
    for name in SIZES:
        again, stored = ((folder / f"{name}.jsonl.gz").read_bytes() for folder in (tmp_path, DATA / "restaurants"))
        # Builds of zlib may compress differently, so the contents are compared, and the time in the header is zero.
        assert gzip.decompress(again) == gzip.decompress(stored)
        assert again[4:8] == stored[4:8] == bytes(4)
