"""Slot errors of E2E texts: which slots of a meaning representation a text omits, states wrongly, or invents.

Patterns decide for each of the eight slots which values a text states. A slot of the meaning representation (MR) is

- *missing* where the text states no value of it,
- *wrong* where the text states another value, whether or not it states the right one too,

and a slot that the MR lacks is *added* where the text states a value of it. The shares are errors / slots of the MRs; one slot
has at most one error. Names are compared without case, accents, hyphens and a leading "The", and may have one misspelt letter
in seven.

It follows ``slot_error.py`` of Dusek et al. 2019 ("Semantic Noise Matters for Neural Natural Language Generation", repository
tuetschek/e2e-cleaning), and differs from it:

- A second value beside the right one, and a second place beside the right one, make the slot wrong;
  there each is an added value. Repeated values are no error; there they are counted.
- Names may be misspelt, shortened to all words but the last, or lack their accent; there they must be verbatim.
- Words of names are taken out first, so that "Raja Indian Cuisine" states no food.
- Prices have three levels, in more words ("budget", "upmarket"); an amount ("less than £20") is right only where the MR has it.
  "moderately priced" is wrong for "less than £20", where that script accepts it.
- Ratings have three levels, and 2 and 4 out of 5, which no MR has.
- "restaurant" beside the right "pub" or "coffee shop" is a general word and no error.
- familyFriendly has many more phrasings, and a negation is searched for in the clause before ("does not really welcome kids").

A place that no MR of the data set has is not known: a text with it lacks the right name, and does not state a wrong one.
The agreement of the figures with a reader's judgement is in docs/evaluation.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from diffusionlm.data.corpora import meaning
from diffusionlm.evaluation.slot_patterns import ADULT, FRIENDLY, NEGATION, PHRASES, Phrase


def normalized(text: str) -> str:
    """Return ``text`` in lower case without accents and punctuation marks other than . , ; : £ / + and hyphens in numbers."""
    plain = unicodedata.normalize("NFKD", text.replace("’", "'").replace("Â£", "£").replace("Ł", "£"))
    plain = "".join(c for c in plain if not unicodedata.combining(c)).casefold()
    for word, number in (("twenty five", "25"), ("twenty", "20"), ("thirty", "30")):
        plain = re.sub(rf"\b{word}\b(?! two)", number, plain)
    plain = re.sub(r"(?<=\d)\s*[-\u2013\u2014]\s*(?=£?\s*\d)", "-", plain)
    plain = re.sub(r"(?<!\d)[-\u2013\u2014]|[-\u2013\u2014](?![\d£])", " ", plain)
    plain = re.sub(r"[^\w\s.,;:!?£/+~-]", " ", plain)
    return re.sub(r"\s+", " ", re.sub(r"([.,;:!?])(?!\d)", r" \1 ", plain)).strip()


@lru_cache(maxsize=4096)
def _name(value: str) -> tuple[str, ...]:
    words = normalized(value).split()
    return tuple(words[1:] if len(words) > 1 and words[0] == "the" else words)


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two names are equal up to one misspelt letter in seven."""
    a, b = " ".join(one), " ".join(other)
    if len(a) < 5 or a[0] != b[0]:
        return a == b
    return a == b or SequenceMatcher(None, a, b, autojunk=False).ratio() >= 1 - 1 / 7 - 1e-9


def _find(name: Sequence[str], words: Sequence[str], exact: bool) -> tuple[int, int] | None:
    """Return where ``name`` stands in ``words``: exactly, else misspelt or shortened."""
    for forms in [name] if exact else [name, name[:-1]] if len(name) > 2 else [name]:
        size = len(forms)
        for start in range(len(words) - size + 1 if size else 0):
            part = words[start : start + size]
            if tuple(part) == tuple(forms) or (not exact and _alike(part, forms)):
                return start, start + size
    return None


@dataclass(frozen=True)
class Places:
    """The values of ``name`` and ``near`` that occur in meaning representations, which a wrong text may state."""

    names: frozenset[str] = frozenset()
    nears: frozenset[str] = frozenset()

    @classmethod
    def of(cls, meanings: Iterable[Mapping[str, str]]) -> Places:
        """Return the places of a set of meaning representations."""
        rows = list(meanings)
        found = [frozenset(row[slot] for row in rows if slot in row) for slot in ("name", "near")]
        return cls(*found)


def _take_places(words: list[str], meaning: Mapping[str, str], places: Places) -> tuple[set[str], list[str]]:
    """Return the places that a text states, and its words with "·" in place of each."""
    own = [meaning[slot] for slot in ("name", "near") if slot in meaning]
    others = sorted({*places.names, *places.nears} - set(own), key=lambda value: (-len(_name(value)), value))
    stated = set()
    for exact in (True, False):
        for value in sorted(own, key=lambda value: -len(_name(value))) + (others if exact else []):
            while (exact or value not in stated) and (found := _find(_name(value), words, exact)):
                stated.add(value)
                words = [*words[: found[0]], "·", *words[found[1] :]]
    return stated, words


def _place_errors(meaning: Mapping[str, str], stated: set[str], places: Places) -> dict[str, str]:
    errors = {slot: "missing" for slot in ("name", "near") if slot in meaning and meaning[slot] not in stated}
    for value in sorted(stated - {meaning.get("name"), meaning.get("near")}):
        slot = "name" if value in places.names and ("name" in errors or value not in places.nears) else "near"
        errors[slot] = "wrong" if slot in meaning else "added"
    return errors


def _spans(slot: str, text: str) -> list[tuple[int, int, Phrase]]:
    """Return the phrases of a slot in a text, without those inside a longer one."""
    found = [(*match.span(), phrase) for phrase in PHRASES[slot] for match in phrase.pattern.finditer(text)]
    return [one for one in found if not any(_inside(one[:2], other[:2]) for other in found)]


def _inside(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= one[0] and one[1] <= other[1] and one != other


def _value_error(slot: str, value: str | None, text: str) -> str | None:
    """Return the error of one slot whose values have phrases; ``value`` is None where the MR lacks it."""
    spans = _spans(slot, text)
    definite = [phrase for _, _, phrase in spans if not phrase.vague]
    if value is None:
        return "added" if definite else None
    known = {each for phrase in PHRASES[slot] for each in phrase.values}
    if value not in known:
        return None if normalized(value) in text else "missing"
    right = any(value in phrase.values for _, _, phrase in spans)
    other = [phrase for phrase in definite if value not in phrase.values]
    if slot == "eatType" and right:
        other = [phrase for phrase in other if phrase.values != ("restaurant",) and value != "restaurant"]
    return "wrong" if other else None if right else "missing"


def _family(text: str) -> set[str]:
    """Return what a text says of families: "yes", "no", both or nothing."""
    stated = {"no"} if ADULT.search(text) else set()
    for match in FRIENDLY.finditer(text):
        before = re.split(r"[.,;:!?]|\b(?:but|however|although|yet)\b", text[: match.start()])[-1].split()[-7:]
        after = [] if "friendl" in match[0] else re.split(r"[.,;:!?]|\b(?:and|but)\b", text[match.end() :])[0].split()[:3]
        near = " ".join([*before, match[0], *after])
        stated.add("no" if re.search(rf"\b{NEGATION}\b|unfriendly", near) else "yes")
    return stated


def slot_errors(meaning: Mapping[str, str], text: str, places: Places | None = None) -> dict[str, str]:
    """Return the errors of ``text`` by slot: "missing", "wrong" or "added"; slots without an error are left out.

    Args:
        meaning: the meaning representation, slot to value.
        text: what is to state it.
        places: the names that a text may state wrongly; by default those of ``meaning`` only.
    """
    places = places or Places.of([meaning])
    stated, words = _take_places(normalized(text).split(), meaning, places)
    plain, errors = " ".join(words), _place_errors(meaning, stated, places)
    for slot in PHRASES:
        if error := _value_error(slot, meaning.get(slot), plain):
            errors[slot] = error
    family, friendly = _family(plain), meaning.get("familyFriendly", "").lower() or None
    if friendly is None and family:
        errors["familyFriendly"] = "added"
    elif friendly is not None and family != {friendly}:
        errors["familyFriendly"] = "wrong" if family else "missing"
    return errors


def realised(texts: Sequence[str], sources: Sequence[str]) -> list[int]:
    """Return minus the number of slot errors of each text against its source, a meaning representation.

    For the ranking ``function``. A place that the source lacks is no error: which places there are is not known here.

    Raises:
        UserError: a source is no meaning representation.
    """
    meanings = {source: meaning(source, "source") for source in dict.fromkeys(sources)}
    return [-len(slot_errors(meanings[source], text)) for text, source in zip(texts, sources, strict=True)]
