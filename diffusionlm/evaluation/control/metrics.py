"""How far texts are what was asked, as the literature counts it and as it should be counted.

Each metric gives a text a number from 0 to 1. Texts of one target are not independent: a mean is one of the targets' means,
and its standard error is over targets. "(paper)" marks what Li et al. (2022, sections 6.1 and 6.2) count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy
import sacrebleu

from diffusionlm.controls import All, Attribute, Binding, Control, Infill, Length, PartsOfSpeech, Span, Tree, Weighted
from diffusionlm.controls.parts_of_speech import MANY
from diffusionlm.evaluation.control.tasks import Gap, Target
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.text_metrics import mean_error
from diffusionlm.restaurants.grammar import tokenize

Scores = dict[str, list[float]]  # by metric, a number for each text

ALL, SCORE = "all controls", "mean score"


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over targets, None where one target says nothing of it."""

    mean: float
    error: float | None


def over_targets(scores: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean of the targets' mean scores; a target without texts, which could not be asked, has 0."""
    means = numpy.array([sum(each) / len(each) if each else 0.0 for each in scores])
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return Estimate(float(means.mean()), error)


def target_metrics(target: Target, texts: Sequence[str], binding: Binding) -> Scores:
    """Return all metrics of ``texts``, which ``target`` asks for; several controls of one kind share theirs."""
    columns: dict[str, list[list[float]]] = defaultdict(list)
    for control in _parts(target.controls):
        scores = control.score(texts, binding)
        for name, column in {SCORE: scores, **control_metrics(control, texts, scores, binding)}.items():
            columns[name].append(column)
    passed = [float(min(row) >= 1) for row in zip(*columns[SCORE], strict=True)]
    if target.gap is not None:
        for name, column in gap_metrics(target.gap, texts).items():
            columns[name].append(column)
    found = {name: [sum(row) / len(row) for row in zip(*parts, strict=True)] for name, parts in columns.items()}
    return {ALL: passed, **found}


def metric_order(names: Iterable[str]) -> list[str]:
    """Return the names, each once, those of one kind ("tree, F1", "tree, the whole text") together."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        kinds.setdefault(name.partition(",")[0], []).append(name)
    return [name for kind in kinds.values() for name in kind]


def _parts(controls: Iterable[Control]) -> Iterator[Control]:
    for control in controls:
        if isinstance(control, All):
            yield from _parts(control.controls)
        else:
            yield from _parts([control.control]) if isinstance(control, Weighted) else [control]


def control_metrics(control: Control, texts: Sequence[str], scores: list[float], binding: Binding) -> Scores:
    """Return the metrics of one control, of which each text has a score already."""
    passed = [float(score >= 1) for score in scores]
    match control:
        case Attribute(field=field, value=value):
            stated = [_states(text, field, value, binding) for text in texts]
            return {
                "attribute, value in the text (paper)": [float(value.lower() in text.lower()) for text in texts],
                "attribute, by the grammar where it accepts": passed,
                **({} if None in stated else {"attribute, in an accepted text": [float(s or 0) for s in stated]}),
                f"attribute, {field}": passed,
            }
        case PartsOfSpeech(tags=tags):
            wanted = tags.split()
            found = [binding.annotator.annotate(text) for text in texts]
            paper = [tag_matches(wanted, a.tags if a and a.tags else ()) for a in found]
            patterned = {} if MANY in wanted else {"tags, matches / gold length (paper)": paper}
            return {**patterned, "tags, the whole text": passed}
        case Tree():
            return {"tree, F1 (paper)": scores, "tree, the whole text": passed}
        case Span():
            return {"span, exact (paper)": passed}
        case Length(low=low, longest=high):
            counts = [len(binding.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
            near = [float(low - 2 <= count <= high + 2) for count in counts]
            return {"length, within two (paper)": near, "length, exact": passed}
        case Infill():
            return {"infilling, context kept": passed}
    kind = type(control).name or type(control).__name__
    return {f"{kind}, passed": passed} if scores == passed else {f"{kind}, score": scores, f"{kind}, passed": passed}


def _states(text: str, field: str, value: str, binding: Binding) -> float | None:
    """Return 1 where the annotator reads the text and finds it stated, None where it tells no attributes at all."""
    found = binding.annotator.annotate(text)
    if found is None:
        return 0.0
    return None if found.attributes is None else float(found.attributes.get(field) == value)


def tag_matches(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return the paper's score of tags: those that stand in their place, as a share of ``wanted``; more words lose nothing."""
    return sum(one in ("*", other) for one, other in zip(wanted, found, strict=False)) / len(wanted)


def gap_metrics(gap: Gap, texts: Sequence[str]) -> Scores:
    """Compare what fills the gap with what was hidden; 0 where the words around it do not stand."""
    hidden, fills = tokenize(gap.hidden), [filling(gap, text) for text in texts]
    return {
        "infilling, BLEU-4 (paper)": [bleu_4(fill, hidden) if fill else 0.0 for fill in fills],
        "infilling, ROUGE-L (paper)": [rouge_l(fill, hidden) if fill else 0.0 for fill in fills],
    }


def filling(gap: Gap, text: str) -> list[str] | None:
    """Return the words in the gap, None where the words around it are not the given ones."""
    words, left, right = tokenize(text), tokenize(gap.left), tokenize(gap.right)
    end = len(words) - len(right)
    kept = len(left) <= end and words[: len(left)] == left and words[end:] == right
    return words[len(left) : end] if kept else None


def bleu_4(words: Sequence[str], reference: Sequence[str]) -> float:
    """Return the BLEU-4 (0 to 1) of a sentence, of n-grams as long as it has (effective order), smoothed as sacrebleu does."""
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
    """Return the perplexity of all texts together, per token, with its standard error over targets."""
    scored = iter(judge.score([text for each in texts for text in each]))
    groups = [[next(scored) for _ in each] for each in texts if each]
    nats, tokens = ([float(sum(getattr(one, name) for one in group)) for group in groups] for name in ("nats", "tokens"))
    perplexity = math.exp(sum(nats) / sum(tokens))
    return Estimate(perplexity, perplexity * mean_error(nats, tokens) if len(groups) > 1 else None)
