"""Frames: the tags that a constituent's words and its two neighbours have, where they give it away.

A frame is written ``before tag ... tag after``, such as ``ADP DET NOUN PUNCT`` for a noun phrase of two words; ``^`` and
``$`` stand for the text's start and end, and of a long constituent the tags in its middle are ``*``, any. In the embedded
corpus nearly every constituent stands in a frame that is hardly ever anything else. Which frames there are depends much on
where in the text they stand, and how long it is: ``span_places`` counts that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from diffusionlm.data.labels import Labelled

START, END, ANY = "^", "$", "*"
EDGE = 4  # tags that are told of each end of a constituent
FEWEST = 5  # constituents that have a frame, for it to be kept
SUREST = 0.5  # of the places with a frame's tags, those that are the constituent


def frame(tags: Sequence[str], first: int, last: int) -> str:
    """Return the frame of the words ``first`` to ``last``, counted from 0 and both included, of a text's ``tags``."""
    inner = tags[first : last + 1]
    if len(inner) > 2 * EDGE:
        inner = [*inner[:EDGE], *[ANY] * (len(inner) - 2 * EDGE), *inner[-EDGE:]]
    before = tags[first - 1] if first else START
    after = tags[last + 1] if last + 1 < len(tags) else END
    return " ".join([before, *inner, after])


def find_templates(rows: Iterable[Labelled], name: str) -> dict[str, list[str]]:
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


def list_templates(frames: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the frames of all labels, each once, in the order in which ``span_places`` numbers them, from 1."""
    return sorted({text for texts in frames.values() for text in texts})


def span_places(rows: Iterable[Labelled], name: str, values: Sequence[str], frames: Mapping[str, Sequence[str]]) -> Tensor:
    """Count where each constituent stands: (N, 6) first and last token, index in ``values``, frame, length of the text, texts.

    Tokens are counted with START, which is 0, lengths with END too. A row whose first four are 0 counts all texts of its
    length. Where a constituent of its size has frames, which are then asked for, it is counted in one of them only;
    elsewhere its frame is 0.
    """
    indices = {value: i for i, value in enumerate(values)}
    sizes = {(label, text.count(" ") - 1) for label, texts in frames.items() for text in texts}
    known = {label: set(texts) for label, texts in frames.items()}
    numbers = {text: i for i, text in enumerate(list_templates(frames), 1)}
    counts: Counter[tuple[int, int, int, int, int]] = Counter()
    for row in rows:
        counts[0, 0, 0, 0, len(row)] += 1
        tags = [str(tag) for tag in (row.tags or ())[1:-1]]
        for (i, j), chain in row.labels[name].items():
            around = frame(tags, i - 1, j - 1) if tags else ""
            labels = chain.split("::")
            stands = any((label, j - i + 1) not in sizes or not tags or around in known[label] for label in labels)
            if i < j and stands and (label := indices.get(chain, 0)):
                counts[i, j, label, numbers.get(around, 0), len(row)] += 1
    return torch.tensor([[*place, texts] for place, texts in sorted(counts.items())], dtype=torch.int32)


def _frames(row: Labelled) -> Iterator[str]:
    """Yield the frames of all runs of two words or more."""
    tags = [str(tag) for tag in row.tags or ()][1:-1]
    for first in range(len(tags)):
        for last in range(first + 1, len(tags)):
            yield frame(tags, first, last)
