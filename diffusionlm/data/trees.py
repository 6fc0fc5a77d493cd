"""Bracketed constituency trees: labelled spans, tags, and the labelled F1 of two trees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from diffusionlm.config import UserError

Bracket = tuple[int, int, str]  # the first and last word of a constituent, counted from 0, and its label


def spans_of(tree: str) -> list[Bracket]:
    """Return the constituents of a bracketed tree as (i, j, label): words i to j, both included, counted from 0.

    Outer constituents come before inner ones. Tags of words and a root named ROOT, TOP or "" are left out. Constituents over
    the same words (unary chains) are one span, whose label joins theirs from the top: ``S::VP`` (Stern et al. 2017, sec. 2.2).
    Raises UserError where the brackets do not match or enclose more than one tree.
    """
    return sorted(((i, j, label) for (i, j), label in read_tree(tree)[0].items()), key=lambda span: (span[0], -span[1]))


def tags_of(tree: str) -> list[str]:
    """Return the tags of a bracketed tree's words, from left to right."""
    return re.findall(r"\(\s*([^\s()]+)\s+[^\s()]+\s*\)", tree)


def read_tree(tree: str, place: str = "tree") -> tuple[dict[tuple[int, int], str], int]:
    """Return the label of each span (i, j) of a tree, and its number of words; ``place`` begins an error sentence."""
    spans: dict[tuple[int, int], str] = {}
    opened: list[tuple[str, int, list[bool]]] = []  # label, first word, for each child whether it is a word
    words, before, roots = 0, "", 0
    for mark in re.findall(r"[()]|[^\s()]+", tree):
        if mark == "(":
            if opened:
                opened[-1][2].append(False)
            roots += not opened
            opened.append(("", words, []))
        elif not opened:
            roots += 1  # something after the end
            break
        elif mark != ")" and before == "(":
            opened[-1] = (mark, words, [])
        elif mark != ")":
            opened[-1][2].append(True)
            words += 1
        else:
            label, first, children = opened.pop()
            if label not in ("ROOT", "TOP", "") and children != [True] and words > first:
                inner = spans.get((first, words - 1))
                spans[first, words - 1] = label if inner is None else f"{label}::{inner}"
        before = mark
    if opened or before != ")" or roots != 1:
        raise UserError(
            f"{place}: expected one tree in matching brackets, as (S (NP (PRON It)) (VP (VERB is))), got {tree[:60]!r}"
        )
    return spans, words


def brackets(tree: str) -> list[Bracket]:
    """Return the constituents of a bracketed tree, as ``spans_of`` with unary chains apart."""
    return [(first, last, label) for first, last, chain in spans_of(tree) for label in chain.split("::")]


def bracket_f1(gold: Sequence[Bracket], found: Sequence[Bracket]) -> float:
    """Return the labelled F1 (0 to 1) of two trees' constituents, as EVALB counts them."""
    a, b = Counter(gold), Counter(found)
    return 2 * (a & b).total() / max(a.total() + b.total(), 1)
