"""The choice among candidates: those that pass their checks, then minimum Bayes risk."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu

from diffusionlm.controls import Outcome


def passes(outcomes: Sequence[Outcome]) -> bool:
    """Return whether no check failed; a control that cannot be checked does not fail."""
    return all(outcome.passed is not False for outcome in outcomes)


def best_candidates(texts: Sequence[str], count: int, checks: Sequence[Sequence[Outcome]] = ()) -> list[int]:
    """Return the row of the best of each ``count`` consecutive ``texts``; candidates that pass their ``checks`` come first."""
    best = []
    for first in range(0, len(texts), count):
        group = list(range(first, first + count))
        group = [row for row in group if not checks or passes(checks[row])] or group
        best.append(group[minimum_bayes_risk([texts[row] for row in group])])
    return best


def minimum_bayes_risk(candidates: Sequence[str]) -> int:
    """Return the index of the candidate with the highest mean BLEU against the others, the first of equals.

    Kumar and Byrne 2004; Diffusion-LM (Li et al. 2022), section 5.2.
    """
    if len(candidates) < 3:
        return 0
    gains = [
        sum(sacrebleu.sentence_bleu(text, [other]).score for j, other in enumerate(candidates) if j != i)
        for i, text in enumerate(candidates)
    ]
    return max(range(len(gains)), key=gains.__getitem__)
