"""The exact annotator of the restaurants corpus: the recogniser of its grammar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from diffusionlm.data.annotators import Annotation, Annotator
from diffusionlm.restaurants import grammar


@dataclass(frozen=True)
class Grammar(Annotator, name="grammar"):
    """The recogniser of the restaurants corpus: gold tags, tree and attributes; None for a text that it rejects."""

    def annotate(self, text: str) -> Annotation | None:
        return _parsed(text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Annotation | None:
    found = grammar.parse(text)
    return Annotation(found.words, found.tags, found.tree, found.attributes) if found else None
