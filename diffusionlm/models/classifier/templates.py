"""Part-of-speech templates: tag sequences, with one neighbour on each side, that identify constituents of a treebank.

A template is ``before tag ... tag after``, such as ``ADP DET NOUN PUNCT`` for a noun phrase of two words; ``^`` and ``$``
stand for the start and the end of the text, ``*`` for any tag in the middle of a long constituent. The control ``span``
requires one of them. Which templates occur depends on the position and on the length of the text: ``span_places`` counts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from diffusionlm.data.labels import Labelled

START, END, ANY = "^", "$", "*"
EDGE = 4  # tags kept at each end of a constituent
MIN_COUNT = 5  # constituents that a template needs
MIN_PRECISION = 0.5  # share of a template's occurrences that must be the constituent


def template(tags: Sequence[str], first: int, last: int) -> str:
    """Return the template of words ``first`` to ``last`` (counted from 0, both included) of a text with these ``tags``."""
    inner = tags[first : last + 1]
    if len(inner) > 2 * EDGE:
        inner = [*inner[:EDGE], *[ANY] * (len(inner) - 2 * EDGE), *inner[-EDGE:]]
    before = tags[first - 1] if first else START
    after = tags[last + 1] if last + 1 < len(tags) else END
    return " ".join([before, *inner, after])


def find_templates(rows: Iterable[Labelled], name: str) -> dict[str, list[str]]:
    """Return the templates of constituents of two words or more by label, most frequent first.

    ``rows`` have ``tags`` and, as the labels ``name``, spans; rows with untagged tokens are skipped. If no template of a
    label and a length is precise enough, the most precise ones are kept.
    """
    tagged = [(row, _tags(row)) for row in rows if row.tags and None not in row.tags[1:-1]]
    found: Counter[tuple[str, str]] = Counter()
    for row, tags in tagged:
        spans = [(i - 1, j - 1, chain) for (i, j), chain in row.labels[name].items() if i < j]
        found.update((label, template(tags, i, j)) for i, j, chain in spans for label in chain.split("::"))
    found = Counter({key: count for key, count in found.items() if count >= MIN_COUNT})
    wanted = {text for _, text in found}
    runs = (template(tags, *ends) for _, tags in tagged for ends in combinations(range(len(tags)), 2))
    occurrences = Counter(text for text in runs if text in wanted)
    best: dict[tuple[str, int], float] = {}
    for (label, text), count in found.items():
        size = label, len(text.split())
        best[size] = max(best.get(size, 0), count / occurrences[text])
    kept: dict[str, list[str]] = {}
    for (label, text), count in sorted(found.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        if count / occurrences[text] >= min(MIN_PRECISION, best[label, len(text.split())]):
            kept.setdefault(label, []).append(text)
    return kept


def list_templates(templates: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the templates of all labels, each once, in the order in which ``span_places`` numbers them from 1."""
    return sorted({text for texts in templates.values() for text in texts})


def span_places(rows: Iterable[Labelled], name: str, values: Sequence[str], templates: Mapping[str, Sequence[str]]) -> Tensor:
    """Count constituents by position: (N, 6) first and last token, index in ``values``, template, text length, texts.

    Positions count BOS as 0, and lengths count EOS too. A row that starts with four zeros counts all texts of a length. A
    constituent whose label has templates of its size counts only where it has one; without templates the number is 0.
    """
    indices = {value: i for i, value in enumerate(values)}
    sizes = {(label, text.count(" ") - 1) for label, texts in templates.items() for text in texts}
    known = {label: set(texts) for label, texts in templates.items()}
    numbers = {text: i for i, text in enumerate(list_templates(templates), 1)}
    counts: Counter[tuple[int, int, int, int, int]] = Counter()
    for row in rows:
        counts[0, 0, 0, 0, len(row)] += 1
        tags = _tags(row)
        for (i, j), chain in row.labels[name].items():
            around = template(tags, i - 1, j - 1) if tags else ""
            labels = chain.split("::")
            fits = any((label, j - i + 1) not in sizes or not tags or around in known[label] for label in labels)
            if i < j and fits and (label := indices.get(chain, 0)):
                counts[i, j, label, numbers.get(around, 0), len(row)] += 1
    return torch.tensor([[*place, texts] for place, texts in sorted(counts.items())], dtype=torch.int32)


def _tags(row: Labelled) -> list[str]:
    return [str(tag) for tag in (row.tags or ())[1:-1]]
