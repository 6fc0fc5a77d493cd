"""Slot errors of sentences that were written for these tests, and of the E2E challenge's human references."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from diffusionlm.data.references import read_items
from diffusionlm.evaluation.slots import Places, normalized, slot_errors

INN = {
    "name": "The Oak", "eatType": "pub", "food": "French", "priceRange": "cheap", "customer rating": "5 out of 5",
    "area": "riverside", "familyFriendly": "yes", "near": "Café Lido",
}  # fmt: skip
RIGHT = "The Oak is a cheap French pub by the river, near Café Lido. It is family friendly and rated 5 out of 5."


def errors(changes: dict[str, str | None], text: str) -> dict[str, str]:
    meaning = {slot: value for slot, value in {**INN, **changes}.items() if value is not None}
    return slot_errors(meaning, text, Places(frozenset({"The Oak", "Elm House"}), frozenset({"Café Lido", "Indian Star"})))


def only(slot: str, value: str | None, phrase: str) -> str | None:
    """Return the error of one slot in a text with all others right; ``phrase`` is what the text says of it."""
    said = {
        "eatType": f"The Oak is a {phrase} by the river near Café Lido with cheap French food, good for families. It has 5 stars.",
        "food": f"The Oak is a cheap pub by the river near Café Lido, good for families, rated 5 out of 5. {phrase}.",
        "priceRange": f"The Oak is a French pub by the river near Café Lido, good for families, rated 5 out of 5. {phrase}.",
        "customer rating": f"The Oak is a cheap French pub by the river near Café Lido, good for families. {phrase}.",
        "area": f"The Oak is a cheap French pub near Café Lido, good for families and rated 5 out of 5. {phrase}.",
        "familyFriendly": f"The Oak is a cheap French pub by the river near Café Lido, rated 5 out of 5. {phrase}.",
    }[slot]
    found = errors({slot: value}, said)
    assert not {*found} - {slot}, (found, said)
    return found.get(slot)


def test_a_right_text_has_no_error_and_an_empty_one_misses_every_slot() -> None:
    assert errors({}, RIGHT) == {}
    assert errors({}, "") == dict.fromkeys(INN, "missing")
    assert slot_errors({slot: "" for slot in INN}, "Nothing.") is not None


@pytest.mark.parametrize(
    ("value", "phrase", "error"),
    [
        ("cheap", "The prices are low", None),
        ("cheap", "It won't break the bank", None),
        ("cheap", "It is not expensive", None),
        ("cheap", "It costs less than £20", "wrong"),
        ("less than £20", "You pay under 20 pounds", None),
        ("less than £20", "It is moderately priced", "wrong"),
        ("£20-25", "Meals are £20 to £25", None),
        ("£20-25", "It has an average price range", None),
        ("moderate", "It is a mid-priced place", None),
        ("moderate", "Expect to pay above average prices", "wrong"),
        ("more than £30", "Prices start at £30", None),
        ("more than £30", "Prices start at thirty pounds", None),
        ("more than £30", "It costs no more than £30", "wrong"),
        ("high", "It is rather pricey", None),
        ("high", "It is inexpensive", "wrong"),
        ("high", "The customer service is fine", "missing"),
        (None, "It is expensive", "added"),
        (None, "It is lovely", None),
    ],
)
def test_prices(value: str | None, phrase: str, error: str | None) -> None:
    assert only("priceRange", value, phrase) == error


@pytest.mark.parametrize(
    ("value", "phrase", "error"),
    [
        ("5 out of 5", "Customers gave it five out of five stars", None),
        ("5 out of 5", "It has a high customer rating", None),
        ("5 out of 5", "It is rated 4 out of 5", "wrong"),
        ("3 out of 5", "It is a three-star place", None),
        ("3 out of 5", "It has a 3 out of 5 customer rating", None),
        ("3 out of 5", "It has above average ratings", "wrong"),
        ("1 out of 5", "It is rated one out of a possible five", None),
        ("1 out of 5", "It has an amazing rating of 1 out of 5", None),
        ("low", "The reviews are poor", None),
        ("low", "It does not have good reviews", None),
        ("average", "Customers rate it average", None),
        ("average", "Its average customer rating is fine", None),
        ("average", "It is small", "missing"),
        ("high", "It is badly rated", "wrong"),
        (None, "It is highly rated", "added"),
    ],
)
def test_ratings(value: str | None, phrase: str, error: str | None) -> None:
    assert only("customer rating", value, phrase) == error


def test_a_price_is_no_rating_and_a_rating_no_price() -> None:
    said = "The Oak is a French pub by the river near Café Lido for families. The price range is high and the customer rating is {}."
    assert errors({"priceRange": "high", "customer rating": "average"}, said.format("average")) == {}
    assert errors({"priceRange": "high", "customer rating": "low"}, said.format("high")) == {"customer rating": "wrong"}


@pytest.mark.parametrize(
    ("value", "phrase", "error"),
    [
        ("yes", "Kids are welcome", None),
        ("yes", "Bring the whole family", None),
        ("yes", "It suits children as well as adults", None),
        ("yes", "It is not only child friendly, it is fun", None),
        ("yes", "It is not cheap, but family-friendly", None),
        ("yes", "It is not family-friendly", "wrong"),
        ("no", "It isn't really suitable for children", None),
        ("no", "It does not welcome kids", None),
        ("no", "Children are not allowed", None),
        ("no", "It is adults only", None),
        ("no", "It caters to an adult crowd", None),
        ("no", "Leave the kids at home", None),
        ("no", "It is a non-family-friendly place", None),
        ("no", "It is child-friendly", "wrong"),
        ("no", "It is friendly", "missing"),
        (None, "It is for families", "added"),
    ],
)
def test_families(value: str | None, phrase: str, error: str | None) -> None:
    assert only("familyFriendly", value, phrase) == error


@pytest.mark.parametrize(
    ("slot", "value", "phrase", "error"),
    [
        ("area", "riverside", "It stands beside the river", None),
        ("area", "city centre", "It is in the center of town", None),
        ("area", "city centre", "It is downtown", None),
        ("area", "riverside", "It is in the city centre", "wrong"),
        ("area", "riverside", "It is outside the city centre", "missing"),
        ("area", None, "It is in the riverside area", "added"),
        ("eatType", "restaurant", "restaurant", None),
        ("eatType", "pub", "pub and restaurant", None),
        ("eatType", "pub", "coffee shop", "wrong"),
        ("eatType", "coffee shop", "café", None),
        ("eatType", None, "restaurant", "added"),
        ("food", "French", "They serve French food", None),
        ("food", "English", "They serve British food", None),
        ("food", "Japanese", "They serve sushi", None),
        ("food", "Japanese", "They serve Italian food", "wrong"),
        ("food", "Fast food", "They serve drinks", "missing"),
        ("food", "Fast food", "It has fast-food", None),
    ],
)
def test_the_other_slots(slot: str, value: str | None, phrase: str, error: str | None) -> None:
    assert only(slot, value, phrase) == error


def test_names() -> None:
    assert errors({}, RIGHT.replace("The Oak", "oak").replace("Café Lido", "the cafe lido")) == {}
    assert errors({"near": "Grand Garden Hotel"}, RIGHT.replace("Café Lido", "Grand Gardn Hotel")) == {}
    assert errors({"near": "Grand Garden Hotel"}, RIGHT.replace("Café Lido", "the Grand Garden")) == {}
    assert errors({}, RIGHT.replace("The Oak", "It")) == {"name": "missing"}
    assert errors({}, RIGHT.replace("The Oak", "Elm House")) == {"name": "wrong"}
    assert errors({}, RIGHT.replace("Café Lido", "Indian Star")) == {"near": "wrong"}  # and no Indian food
    assert errors({"near": None}, RIGHT) == {"near": "added"}
    assert errors({}, RIGHT.replace("Café Lido", "here")) == {"near": "missing"}


def test_text_is_compared_without_case_accents_and_hyphens() -> None:
    assert normalized("A Café, Kid-Friendly; £20\u2013£25!") == "a cafe , kid friendly ; £20-£25 !"


def test_every_human_reference_of_the_challenge_is_read_as_in_the_documents() -> None:
    folder = Path(os.environ.get("DIFFUSIONLM_E2E", Path(__file__).parents[3] / "shared" / "data" / "e2e"))
    if not folder.is_dir():
        pytest.skip(f"the E2E data is not in {folder} (DIFFUSIONLM_E2E names another folder)")
    items = read_items(folder / "testset_w_refs.csv")
    places = Places.of(item.slots for item in items if item.slots)
    found: Counter[str] = Counter()
    for item in items:
        for text in item.references[::10]:
            assert item.slots is not None
            found.update(slot_errors(item.slots, text, places).values())
            found["slots"] += len(item.slots)
    shares = {kind: found[kind] / found["slots"] for kind in ("missing", "wrong", "added")}
    assert 0.05 < shares["missing"] < 0.09 and 0.005 < shares["wrong"] < 0.02 and shares["added"] < 0.002
