"""Probabilistic grammar of short restaurant descriptions, with a generator and an exact recogniser.

The language is given by two blocks of text, `LEXICON` and `RULES` (rules.py).  `generate` expands `ROOT` at random; `parse`
fills a memoised top-down chart with the same rules, so a text is accepted if and only if it can be generated.  Both
keep three conditions beyond the rules: every field (an attribute, or a topic such as the staff) is stated at most once
per text, a text has `SHORTEST` to `LONGEST` words, and sentences begin with a capital and take `an` before a vowel.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from diffusionlm.restaurants.rules import LEXICON, RULES

ATTRIBUTES = ("name", "type", "food", "price", "rating", "family", "area", "near")
TOPICS = ("staff", "room", "dish")
SHORTEST, LONGEST = 8, 40

_MARKS = {
    "*": [str.maketrans({"*": "good", "~": "bad"}), str.maketrans({"*": "bad", "~": "good"})],
    "%": [str.maketrans({"%": each}) for each in ("good", "even", "bad")],
    "#": [str.maketrans({"#": each}) for each in ("one", "many")],
    "@": [str.maketrans({"@": each}) for each in TOPICS],
}
_FIELDS = {field: 1 << place for place, field in enumerate(ATTRIBUTES + TOPICS)}


class Word(NamedTuple):
    """A terminal: a word as the rules write it, its tag, and the field and value it states, if any."""

    form: str
    tag: str
    field: str = ""
    value: str = ""


class Node(NamedTuple):
    """A symbol of the rules over the derivations of its parts."""

    symbol: str
    children: tuple[Node | Word, ...]


class Alternative(NamedTuple):
    """One right-hand side with its weight among the alternatives of a symbol."""

    weight: float
    parts: tuple[str | Word, ...]


@dataclass(frozen=True)
class Description:
    """A text with its words, the attributes it states, and one tag and one leaf of the tree for every word."""

    text: str
    words: tuple[str, ...]
    attributes: dict[str, str]
    tags: tuple[str, ...]
    tree: str

    def to_dict(self) -> dict[str, Any]:
        """Return the description as a JSON object."""
        # Fields that repeat one another stand side by side, which makes the compressed corpus smaller.
        return {
            "text": self.text,
            "attributes": dict(self.attributes),
            "words": list(self.words),
            "tree": self.tree,
            "tags": list(self.tags),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Description:
        """Read a description from a JSON object; raises KeyError where a field is missing."""
        return cls(record["text"], tuple(record["words"]), dict(record["attributes"]), tuple(record["tags"]), record["tree"])


def tokenize(text: str) -> list[str]:
    """Split a text into words, hyphenated words kept whole, and single punctuation marks."""
    return re.findall(r"[\w£]+(?:[-&/][\w£]+)*|[^\w\s]", text)


def join(words: list[str] | tuple[str, ...]) -> str:
    """Join words to a text: a space between words and none before a comma or a full stop."""
    return re.sub(r" ([,.])", r"\1", " ".join(words))


def generate(random_source: random.Random) -> Description:
    """Draw a description at random."""
    while True:
        root = _expand("ROOT", random_source)
        leaves = list(_leaves(root))
        if SHORTEST <= len(leaves) <= LONGEST and _states_once(root):
            return _describe(root, _surface([leaf.form for leaf in leaves]))


def parse(text: str) -> Description | None:
    """Return the description of a text, or None if the text is not in the language."""
    return next(parses(text), None)


def accepts(text: str) -> bool:
    """Say whether a text is in the language, that is, whether `generate` can produce it."""
    return parse(text) is not None


def parses(text: str) -> Iterator[Description]:
    """Yield one description for every derivation of a text, the canonical one first."""
    words = tokenize(text)
    if not SHORTEST <= len(words) <= LONGEST or join(words) != text:
        return
    readings = _readings(words)
    if readings is None:
        return
    for end, _, root in _Chart(readings).derivations("ROOT", 0):
        if end == len(words) and isinstance(root, Node):
            yield _describe(root, words)


class _Chart:
    """Derivations of every symbol from each position, each found once."""

    def __init__(self, readings: list[tuple[str, ...]]) -> None:
        self._readings = readings
        self._found: dict[tuple[str, int], list[tuple[int, int, Node | Word]]] = {}

    def derivations(self, symbol: str, start: int) -> list[tuple[int, int, Node | Word]]:
        """Return the end, the fields stated (as bits) and the derivation of every reading of a symbol at a start."""
        key = symbol, start
        if key not in self._found:
            self._found[key] = list(self._derive(symbol, start)) if start < len(self._readings) else []
        return self._found[key]

    def _derive(self, symbol: str, start: int) -> Iterator[tuple[int, int, Node | Word]]:
        own = _FIELDS.get(_SPAN_FIELD.get(symbol, ""), 0)
        starters = _STARTERS[symbol]
        for alternative in {each: None for form in self._readings[start] for each in starters.get(form, ())}:
            partial: list[tuple[int, int, tuple[Node | Word, ...]]] = [(start, own, ())]
            for part in alternative.parts:
                partial = [
                    (end, stated | more, (*children, child))
                    for middle, stated, children in partial
                    for end, more, child in self._read(part, middle)
                    if not stated & more
                ]
            for end, stated, children in partial:
                yield end, stated, Node(symbol, children)

    def _read(self, part: str | Word, start: int) -> list[tuple[int, int, Node | Word]]:
        if isinstance(part, str):
            return self.derivations(part, start)
        if start < len(self._readings) and part.form in self._readings[start]:
            return [(start + 1, _FIELDS.get(part.field, 0), part)]
        return []


def _readings(words: list[str]) -> list[tuple[str, ...]] | None:
    """Return the forms that the rules may write for each word, or None where capitals or articles are wrong."""
    readings: list[tuple[str, ...]] = []
    for place, word in enumerate(words):
        forms: tuple[str, ...] = (word,)
        if place == 0 or words[place - 1] == ".":
            if not word[0].isupper():
                return None
            forms = (word[0].lower() + word[1:], word)
        if forms[0] in ("a", "an"):
            if place + 1 == len(words) or forms[0] != _article(words[place + 1]):
                return None
            forms = ("a",)
        readings.append(forms)
    return readings


def _surface(forms: list[str]) -> list[str]:
    """Write the forms of the rules as words of a text: the inverse of `_readings`."""
    words = [_article(after) if form == "a" else form for form, after in zip(forms, [*forms[1:], ""], strict=True)]
    return [word[0].upper() + word[1:] if place == 0 or words[place - 1] == "." else word for place, word in enumerate(words)]


def _article(following: str) -> str:
    # Spelling decides here: the lexicon has no word such as "hour" or "one-star" whose sound disagrees with it.
    return "an" if following[:1].lower() in ("a", "e", "i", "o", "u") else "a"


def _expand(symbol: str, random_source: random.Random) -> Node:
    alternatives = GRAMMAR[symbol]
    (chosen,) = random_source.choices(alternatives, cum_weights=_CUMULATED[symbol])
    return Node(symbol, tuple(_expand(part, random_source) if isinstance(part, str) else part for part in chosen.parts))


def _leaves(node: Node | Word) -> Iterator[Word]:
    if isinstance(node, Word):
        yield node
    else:
        for child in node.children:
            yield from _leaves(child)


def _statements(node: Node | Word) -> Iterator[tuple[str, str]]:
    """Yield every field that a derivation states, with its value."""
    if isinstance(node, Word):
        if node.field:
            yield node.field, node.value
        return
    if node.symbol in _SPAN_FIELD:
        yield _SPAN_FIELD[node.symbol], " ".join(leaf.form for leaf in _leaves(node))
    for child in node.children:
        yield from _statements(child)


def _states_once(root: Node) -> bool:
    fields = [field for field, _ in _statements(root)]
    return len(fields) == len(set(fields))


def _describe(root: Node, words: list[str]) -> Description:
    stated = dict(_statements(root))
    return Description(
        text=join(words),
        words=tuple(words),
        attributes={field: stated[field] for field in ATTRIBUTES if field in stated},
        tags=tuple(leaf.tag for leaf in _leaves(root)),
        tree=_bracket(root, iter(words)),
    )


def _bracket(node: Node | Word, words: Iterator[str]) -> str:
    if isinstance(node, Word):
        return f"({node.tag} {next(words)})"
    inside = " ".join(_bracket(child, words) for child in node.children)
    label = node.symbol.partition("-")[0]
    return f"({label} {inside})" if label.isupper() else inside


def _copies(text: str, marks: Iterable[str]) -> list[str]:
    """Return one copy of a text for every joint reading of those of the marks that occur in it."""
    copies = [text]
    for mark in marks:
        if mark in text:
            copies = [copy.translate(reading) for copy in copies for reading in _MARKS[mark]]
    return copies


def _lines(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, tag, field and body of every line, once for every reading of the marks in what precedes the body."""
    for line in re.sub(r"\n +", " ", text.strip()).splitlines():
        for copy in _copies(line, [mark for mark in _MARKS if mark in line.partition(": ")[0]]) if line else ():
            found = re.fullmatch(r"(\S+)(?: ([A-Z]+))?(?: \[(\S+)\])?: (.+)", copy)
            if found is None:
                raise ValueError(f"not a line of the grammar: {line!r}")
            name, tag, field, body = found.groups(default="")
            yield name, tag, field, body


def _load() -> tuple[dict[str, list[Alternative]], dict[str, str]]:
    """Return the alternatives of every symbol, and the field of every symbol whose words are the value of one."""
    grammar: dict[str, list[Alternative]] = {}
    span_field: dict[str, str] = {}
    for name, tag, statement, body in _lines(LEXICON):
        field, _, value = statement.partition("=")
        words = [Word(form, tag, field, value or (form if field else "")) for form in body.split()]
        grammar.setdefault(name, []).extend(Alternative(1, (word,)) for word in words)
    for name, _, field, body in _lines(RULES):
        if field:
            span_field[name] = field
        for written in body.split(" | "):
            weight, *parts = written.split() if written[0].isdigit() else ["1", *written.split()]
            copies = _copies(" ".join(parts), _MARKS)
            row = grammar.setdefault(name, [])
            row.extend(Alternative(float(weight) / len(copies), _parts(copy, grammar)) for copy in copies)
    return grammar, span_field


def _parts(written: str, grammar: dict[str, list[Alternative]]) -> tuple[str | Word, ...]:
    """Return the parts of an alternative; a bracket in it becomes a symbol of its own in the grammar."""
    while found := re.search(r"\((\w+) ([^()]*)\)", written):
        name = f"{found[1]}-{len(grammar)}"
        grammar[name] = [Alternative(1, _parts(found[2], grammar))]
        written = written[: found.start()] + name + written[found.end() :]
    return tuple(map(_part, written.split()))


def _part(written: str) -> str | Word:
    if written in (",", "."):
        return Word(written, "PUNCT")
    form, slash, tag = written.partition("/")
    return Word(form, tag) if slash else written


def _starters(grammar: dict[str, list[Alternative]]) -> dict[str, dict[str, list[Alternative]]]:
    """Return, for every symbol, the alternatives that can begin with each form; raises KeyError for an unknown one."""
    table: dict[str, dict[str, list[Alternative]]] = {}

    def fill(symbol: str) -> dict[str, list[Alternative]]:
        if symbol not in table:
            row: dict[str, list[Alternative]] = {}
            for alternative in grammar[symbol]:
                first = alternative.parts[0]
                for form in [first.form] if isinstance(first, Word) else fill(first):
                    row.setdefault(form, []).append(alternative)
            table[symbol] = row
        return table[symbol]

    for symbol in grammar:
        fill(symbol)
    return table


# Every symbol, lexicon groups among them, with its alternatives.
GRAMMAR, _SPAN_FIELD = _load()
_CUMULATED = {symbol: list(accumulate(each.weight for each in row)) for symbol, row in GRAMMAR.items()}
_STARTERS = _starters(GRAMMAR)
