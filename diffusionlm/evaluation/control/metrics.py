"""Metrics of control: success as the literature counts it, and stricter checks.

Each metric gives a text a number from 0 to 1, or None where it cannot be checked. Texts of one target are not independent: the
mean is over the targets' means, with its standard error over targets. "(paper)" marks metrics of Li et al. (2022, sections 6.1
and 6.2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy
import sacrebleu

from diffusionlm.controls import All, Binding, Control, Weighted
from diffusionlm.controls.control import Scores, lowest, passes
from diffusionlm.data.copies import tokenize
from diffusionlm.evaluation.control.tasks import Gap, Target
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.text_metrics import mean_error, mean_present

ALL, SCORE = "all controls", "mean score"


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over targets; None for a single target."""

    mean: float
    error: float | None


def over_targets(scores: Sequence[Scores]) -> Estimate:
    """Return the mean of the targets' mean scores; a target without scores (the model cannot follow it) counts 0."""
    means = numpy.array([mean_present(each) or 0.0 for each in scores])
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return Estimate(float(means.mean()), error)


def target_metrics(target: Target, texts: Sequence[str], binding: Binding) -> dict[str, Scores]:
    """Return all metrics of ``texts`` for a target; several controls of one kind share theirs.

    A metric that none of the texts can be checked for is left out; so is ``ALL`` where a control cannot be checked: the texts
    that fail another one would be known, and those that pass would not. ``SCORE`` is then of the controls that can be checked.
    """
    columns: dict[str, list[Scores]] = defaultdict(list)
    unchecked = unchecked_controls(target, binding)
    for control in _parts(target.controls):
        scores = control.score(texts, binding)
        if control not in unchecked:
            columns[SCORE].append(scores)
        if control not in unchecked or texts:
            for name, column in control.metrics(texts, scores, binding).items():
                columns[name].append(column)
    passed = passes([lowest(row) for row in zip(*columns[SCORE], strict=True)])
    if target.gap is not None:
        columns |= {name: [column] for name, column in gap_metrics(target.gap, texts).items()}
    parts = {name: [mean_present(row) for row in zip(*columns[name], strict=True)] for name in columns if columns[name]}
    found = parts if unchecked else {ALL: passed, **parts}
    return {name: column for name, column in found.items() if not texts or any(score is not None for score in column)}


def unchecked_controls(target: Target, binding: Binding) -> list[Control]:
    """Return the controls of a target that finished texts cannot be checked for."""
    return [control for control in _parts(target.controls) if not control.checkable(binding)]


def metric_order(names: Iterable[str]) -> list[str]:
    """Return the names without repetition, those of one kind ("tree, F1", "tree, the whole text") together."""
    distinct = list(dict.fromkeys(names))
    kinds = [name.partition(",")[0] for name in distinct]
    return sorted(distinct, key=lambda name: kinds.index(name.partition(",")[0]))


def _parts(controls: Iterable[Control]) -> Iterator[Control]:
    for control in controls:
        if isinstance(control, All):
            yield from _parts(control.controls)
        else:
            yield from _parts([control.control]) if isinstance(control, Weighted) else [control]


def gap_metrics(gap: Gap, texts: Sequence[str]) -> dict[str, Scores]:
    """Compare the words in the gap with the hidden ones; 0 where the words around it were changed."""
    hidden, fills = tokenize(gap.hidden), [filling(gap, text) for text in texts]
    return {
        "infilling, BLEU-4 (paper)": [bleu_4(fill, hidden) if fill else 0.0 for fill in fills],
        "infilling, ROUGE-L (paper)": [rouge_l(fill, hidden) if fill else 0.0 for fill in fills],
    }


def filling(gap: Gap, text: str) -> list[str] | None:
    """Return the words in the gap; None where the words around it were changed."""
    words, left, right = tokenize(text), tokenize(gap.left), tokenize(gap.right)
    end = len(words) - len(right)
    kept = len(left) <= end and words[: len(left)] == left and words[end:] == right
    return words[len(left) : end] if kept else None


def bleu_4(words: Sequence[str], reference: Sequence[str]) -> float:
    """Return the sentence BLEU-4 (0 to 1) with effective order and the smoothing of sacrebleu."""
    bleu = sacrebleu.BLEU(tokenize="none", effective_order=True)
    return bleu.sentence_score(" ".join(words), [" ".join(reference)]).score / 100


def rouge_l(words: Sequence[str], reference: Sequence[str]) -> float:
    """Return ROUGE-L (0 to 1): F1 of the longest common subsequence (Lin 2004, section 3)."""
    longest = [0] * (len(reference) + 1)
    for word in words:
        before = longest[:]
        for i, other in enumerate(reference, 1):
            longest[i] = before[i - 1] + 1 if word == other else max(before[i], longest[i - 1])
    return 2 * longest[-1] / max(len(words) + len(reference), 1)


def perplexity_over_targets(judge: Judge, texts: Sequence[Sequence[str]]) -> Estimate:
    """Return the perplexity per token of all texts together, with its standard error over targets."""
    scored = iter(judge.score([text for each in texts for text in each]))
    groups = [[next(scored) for _ in each] for each in texts if each]
    nats, tokens = ([float(sum(getattr(one, name) for one in group)) for group in groups] for name in ("nats", "tokens"))
    perplexity = math.exp(sum(nats) / sum(tokens))
    return Estimate(perplexity, perplexity * mean_error(nats, tokens) if len(groups) > 1 else None)
