"""Figures over numbers of network evaluations: each system at the entropy of the reference texts, between its temperatures.

A perplexity has no meaning without the diversity of the same texts, so that all figures are interpolated at one entropy, and
self-BLEU, copies and unique texts stand beside the perplexity. Nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusionlm import plots
from diffusionlm.evaluation.text_metrics import at_entropy, interpolated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diffusionlm.evaluation.report import EvaluationRow, Report


@dataclass(frozen=True)
class AtEvaluations:
    """Figures of a system at an entropy of its texts (nats); None where its temperatures do not cover it.

    ``evaluations`` are the most allowed, of which ``spent`` were spent, None where they were not counted; ``entropies`` are the
    lowest and the highest of its temperatures. ``judge_perplexity`` is log-linear in the entropy, the others are linear:
    ``self_bleu`` (0 to 100), ``unique`` and ``copied``, shares of the texts.
    """

    evaluations: int
    spent: float | None
    entropies: tuple[float, float]
    judge_perplexity: float | None
    self_bleu: float | None
    unique: float | None
    copied: float | None


def at_evaluations(rows: Sequence[EvaluationRow], entropy: float) -> AtEvaluations:
    """Return the figures at ``entropy`` of ``rows``, the temperatures of a system at one number of evaluations."""

    def at(value: Callable[[EvaluationRow], float]) -> float | None:
        return interpolated([(row.diversity.entropy, value(row)) for row in rows], entropy)

    entropies = [row.diversity.entropy for row in rows]
    return AtEvaluations(
        evaluations=rows[0].evaluations or 0,
        spent=None if (cost := rows[0].cost) is None else cost.per_candidate,
        entropies=(min(entropies), max(entropies)),
        judge_perplexity=at_entropy([(row.diversity.entropy, row.judge_perplexity) for row in rows], entropy),
        self_bleu=at(lambda row: row.diversity.self_bleu),
        unique=at(lambda row: row.diversity.unique),
        copied=at(lambda row: row.diversity.copied),
    )


def evaluations_lines(report: Report) -> Iterator[str]:
    """Yield lines on each system over its numbers of evaluations, none without any."""
    found = report.over_evaluations()
    if not found:
        return
    yield ""
    yield f"Over numbers of evaluations, at the entropy of the reference texts (sampled in {_arithmetic(report)})"
    for system, each in found.items():
        for one in each:
            less = f" ({one.spent:.4g} spent)" if one.spent is not None and one.spent < one.evaluations else ""
            yield f"  {system}, {one.evaluations} evaluation{'s' * (one.evaluations != 1)}{less}: {_figures(one)}"


def _figures(one: AtEvaluations) -> str:
    if one.entropies[0] == one.entropies[1] and one.judge_perplexity is None:
        return f"its only temperature has an entropy of {one.entropies[0]:.3f}, another one"
    if one.judge_perplexity is None:
        return f"its temperatures have entropies of {one.entropies[0]:.3f} to {one.entropies[1]:.3f}, which do not cover it"
    return (
        f"judge perplexity {one.judge_perplexity:.2f}, self-BLEU {one.self_bleu:.1f}, unique {one.unique:.1%}, "
        f"copied {one.copied:.1%}"
    )


def _arithmetic(report: Report) -> str:
    return " and ".join(sorted({row.settings["dtype"] for row in report.rows if row.evaluations}))


PANELS = {
    "judge_perplexity": "judge perplexity (lower is more fluent)", "self_bleu": "self-BLEU\n(lower is more diverse)",
    "copied": "copies of\ntraining texts (%)",
}  # fmt: skip


def evaluations_figure(report: Report) -> Figure | None:
    """Draw perplexity, self-BLEU and copies at the entropy of the reference texts over evaluations.

    None where no system has several numbers of evaluations at which its temperatures cover that entropy.
    """
    covered = {system: [one for one in each if one.judge_perplexity] for system, each in report.over_evaluations().items()}
    if all(len(each) < 2 for each in covered.values()):
        return None
    lines = {
        name: {
            label: [(one.evaluations, _percent(name, getattr(one, name))) for one in each] for label, each in covered.items()
        }
        for name in PANELS
    }
    title = f"at the entropy of the reference texts, {report.about['count']} texts per point, sampled in {_arithmetic(report)}"
    levels = {name: _percent(name, value) for name, value in _reference(report).items()}
    return plots.over_evaluations(PANELS, lines, levels, title)


def _reference(report: Report) -> Mapping[str, float]:
    real = report.reference[0]
    return {
        "judge_perplexity": real.judge_perplexity, "self_bleu": real.diversity.self_bleu, "copied": real.diversity.copied,
    }  # fmt: skip


def _percent(name: str, value: float) -> float:
    return 100 * value if name == "copied" else value
