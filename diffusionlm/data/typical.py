"""The most typical of the texts that a corpus has for a source.

A source with many texts teaches a model all ways of saying the same, and a model that predicts tokens independently mixes them.
The texts that agree most with the others leave fewer ways to mix: what sequence-level distillation (Kim and Rush 2016) does
for such models by texts of a teacher, without a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets  # type: ignore[import-untyped]
import sacrebleu
from tqdm import tqdm

from diffusionlm.config import UserError
from diffusionlm.data.references import grouped
from diffusionlm.processes import is_first
from diffusionlm.progress import intervals


def agreement(text: str, others: Sequence[str]) -> float:
    """Return the sum of the BLEU of ``text`` against each of ``others``; 0 for one other, where neither is better."""
    return sum(sacrebleu.sentence_bleu(text, [other]).score for other in others) if len(others) > 1 else 0.0


def typical_rows(rows: datasets.Dataset, sources: Sequence[str], count: int) -> datasets.Dataset:
    """Return the rows of at most ``count`` distinct texts for each of the ``sources``, one for each row, in their order.

    They are those of the highest mean BLEU against the other distinct texts of the source; of equals, the first.

    Raises:
        UserError: no source has more texts.
    """
    texts = rows["text"][:]
    kept: set[tuple[str, str]] = set()
    groups = grouped(sources, texts).items()
    for source, own in tqdm(groups, "typical texts", unit="source", leave=False, disable=not is_first(), **intervals()):
        distinct = list(dict.fromkeys(own))
        gains = {text: agreement(text, distinct[:i] + distinct[i + 1 :]) for i, text in enumerate(distinct)}
        kept |= {(source, text) for text in sorted(distinct, key=lambda text: -gains[text])[:count]}
    first = {pair: number for number, pair in reversed([*enumerate(zip(sources, texts, strict=True))]) if pair in kept}
    if len(first) == len(texts):
        raise UserError(f"data.typical: no source has more than {count} texts, so this setting has no effect; leave it out")
    return rows.select(sorted(first.values()))
