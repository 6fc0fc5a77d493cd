"""Frames: the tags that a constituent's words and its two neighbours have, where they give it away.

A frame is written ``before tag ... tag after``, such as ``ADP DET NOUN PUNCT`` for a noun phrase of two words; ``^`` and
``$`` stand for the text's start and end, and of a long constituent the tags in its middle are ``*``, any. In the embedded
corpus nearly every constituent stands in a frame that is hardly ever anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from diffusionlm.labels import Labelled

START, END, ANY = "^", "$", "*"
EDGE = 4  # tags that are told of each end of a constituent
FEWEST = 5  # constituents that have a frame, for it to be kept
SUREST = 0.9  # of the places with a frame's tags, those that are the constituent


def frame(tags: Sequence[str], first: int, last: int) -> str:
    """Return the frame of the words ``first`` to ``last``, counted from 0 and both included, of a text's ``tags``."""
    inner = tags[first : last + 1]
    if len(inner) > 2 * EDGE:
        inner = [*inner[:EDGE], *[ANY] * (len(inner) - 2 * EDGE), *inner[-EDGE:]]
    before = tags[first - 1] if first else START
    after = tags[last + 1] if last + 1 < len(tags) else END
    return " ".join([before, *inner, after])


def frames_of(rows: Iterable[Labelled], name: str) -> dict[str, list[str]]:
    """Return the frames that tell constituents of two words or more, for each label the commonest first.

    ``rows`` carry ``tags`` and, as the labels ``name``, spans; those without a tag for every token are left out. Where none
    of a label's frames of one length is sure enough the surest is kept.
    """
    known = [row for row in rows if row.tags and None not in row.tags[1:-1]]
    found: Counter[tuple[str, str]] = Counter()
    for row in known:
        tags = [str(tag) for tag in row.tags or ()][1:-1]
        spans = [(i - 1, j - 1, chain) for (i, j), chain in row.labels[name].items() if i < j]
        found.update((label, frame(tags, i, j)) for i, j, chain in spans for label in chain.split("::"))
    found = Counter({key: count for key, count in found.items() if count >= FEWEST})
    wanted = {text for _, text in found}
    places = Counter(text for row in known for text in _frames(row) if text in wanted)
    best: dict[tuple[str, int], float] = {}
    for (label, text), count in found.items():
        size = label, len(text.split())
        best[size] = max(best.get(size, 0), count / places[text])
    kept: dict[str, list[str]] = {}
    for (label, text), count in sorted(found.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        if count / places[text] >= min(SUREST, best[label, len(text.split())]):
            kept.setdefault(label, []).append(text)
    return kept


def _frames(row: Labelled) -> Iterator[str]:
    """Yield the frames of all runs of two words or more."""
    tags = [str(tag) for tag in row.tags or ()][1:-1]
    for first in range(len(tags)):
        for last in range(first + 1, len(tags)):
            yield frame(tags, first, last)
