"""The report of a control evaluation: rows of figures, the table and the figure.

A row is one task at one guidance strength: the success of its controls, beside fluency, diversity and cost. Each figure has
those of unguided texts of the same seeds and of the reference texts beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from diffusionlm import plots
from diffusionlm.evaluation.control.metrics import ALL, SCORE, Estimate
from diffusionlm.evaluation.jobs import REFERENCE, ResumableReport, Row, aligned
from diffusionlm.evaluation.text_metrics import Diversity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEERED, UNGUIDED, LEFT_ONLY = "steered", "unguided", "judge LM, left context"
SOURCES = (STEERED, UNGUIDED, REFERENCE, LEFT_ONLY)


@dataclass(frozen=True)
class Work:
    """The mean cost of a text: evaluations of the network, as ``pipelines.cost`` counts them.

    ``backwards`` are those with a backward pass, ``classifications`` evaluations of classifiers, ``seconds`` wall-clock time
    at the batch size of the sampling settings.
    """

    evaluations: float
    backwards: float
    classifications: float
    seconds: float


@dataclass(frozen=True)
class ControlRow(Row):
    """A task of a model at one guidance ``strength``, None where no gradient guides; ``samples`` are texts per target.

    ``refused`` has the reasons why the model cannot satisfy some of the ``targets``, which count as 0 in every metric. The
    metrics of the controls and of the corpus are by metric, then by source of the texts (steered, unguided, reference text,
    judge LM); the judge LM's ``perplexity`` is by source. ``distinct`` is the share of distinct texts among those of one
    target; ``diversity`` is that of all steered texts together. ``settings`` determine the texts and the metrics; by the
    ``digest`` of both a stored row is recognised as theirs. ``unchecked`` has a control of each target with one that cannot
    be checked.
    """

    system: str
    task: str
    strength: float | None
    targets: int
    refused: tuple[str, ...]
    samples: int
    metrics: dict[str, dict[str, Estimate]]
    corpus_metrics: dict[str, dict[str, Estimate]]
    perplexity: dict[str, Estimate]
    distinct: float
    diversity: Diversity
    work: Work
    unguided_work: Work
    fingerprint: str
    settings: dict[str, Any]
    digest: str
    unchecked: tuple[str, ...] = ()

    def replaces(self, other: Self) -> bool:
        """Return whether ``other`` has the same model, task and strength."""
        return (self.system, self.task, self.strength) == (other.system, other.task, other.strength)


@dataclass
class ControlReport(ResumableReport):
    """``control.json``: tasks under one judge LM."""

    FILE: ClassVar[str] = "control.json"
    ROWS: ClassVar[dict[str, type[Row]]] = {"rows": ControlRow}

    rows: list[ControlRow] = field(default_factory=list)


def control_table(report: ControlReport) -> str:
    """Return the report as a table with explanations and every metric of every row."""
    systems = list(dict.fromkeys(row.system for row in report.rows))
    rows = [row for system in systems for row in report.rows if row.system == system]
    own = list(dict.fromkeys(name for row in rows for name in row.corpus_metrics))
    figures = [{**({"system": row.system} if len(systems) > 1 else {}), **format_row(row, own)} for row in rows]
    explained = EXPLAINED + PEER * any(LEFT_ONLY in row.perplexity for row in rows)
    details = [line for row in rows for line in ("", *_detail_lines(row, len(systems) > 1))]
    return report.table(f"judge LM {report.about['judge']}; mean ± standard error over targets", figures, explained, details)


EXPLAINED = [
    "targets: targets x texts per target. score: mean score of the controls, 0 to 100; all passed: % of texts that satisfy",
    "every control. judge-ppl: judge perplexity of the steered texts; unguided: of texts without control from the same seeds;",
    "reference: of the targets' reference texts. distinct: among the texts of one target; entropy (nats), copied (training",
    "texts): of all texts of the row; then the corpus's own metrics. Mean cost of a text: evaluations of the denoiser, those",
    "with a backward pass, evaluations of classifiers, seconds.",
]
PEER = [
    "judge LM, left context: fills the gap conditioned on the text before it and on the number of hidden words; unguided: the",
    "words of an unguided text at that place.",
]


def format_row(row: ControlRow, corpus_metrics: list[str]) -> dict[str, str]:
    """Return a row's figures by column of the table; a dash where it has none."""
    return {
        "task": row.task,
        "strength": strength_mark(row.strength) or "-",
        "targets": f"{row.targets} x {row.samples}" + (f" ({len(row.refused)} refused)" if row.refused else ""),
        "score": percent(row.metrics.get(SCORE, {}).get(STEERED)),
        "all passed": percent(row.metrics.get(ALL, {}).get(STEERED)),
        "judge-ppl": number(row.perplexity.get(STEERED)),
        "unguided": number(row.perplexity.get(UNGUIDED)),
        "reference": number(row.perplexity.get(REFERENCE)),
        "distinct": f"{row.distinct:.1%}",
        "entropy": f"{row.diversity.entropy:.3f}",
        "copied": f"{row.diversity.copied:.1%}",
        **{name: number(row.corpus_metrics.get(name, {}).get(STEERED), 3) for name in corpus_metrics},
        "evals": f"{row.work.evaluations:.4g}",
        "backward": f"{row.work.backwards:.4g}",
        "classif.": f"{row.work.classifications:.4g}",
        "seconds": f"{row.work.seconds:.2g}",
    }


def strength_mark(strength: float | None, label: str = "") -> str:
    """Return ``label`` with the strength, nothing without one."""
    return "" if strength is None else f"{label}{strength:g}"


def percent(value: Estimate | None) -> str:
    """Return a share as a percentage with its standard error."""
    return number(value and Estimate(100 * value.mean, value.error and 100 * value.error), 1)


def number(value: Estimate | None, places: int = 2) -> str:
    """Return a mean with its standard error; a dash for None."""
    if value is None:
        return "-"
    return f"{value.mean:.{places}f}" + ("" if value.error is None else f" ± {value.error:.{places}f}")


def _detail_lines(row: ControlRow, named: bool) -> list[str]:
    """Return every metric of a row, by source of the texts."""
    sources = [source for source in SOURCES if source in row.perplexity]
    at = strength_mark(row.strength, ", strength ")
    shown = [(name, by, percent) for name, by in row.metrics.items()]
    shown += [(name, by, partial(number, places=3)) for name, by in row.corpus_metrics.items()]
    shown.append(("judge perplexity", row.perplexity, number))
    rows = [(f"  {name}", *(show(by.get(source)) for source in sources)) for name, by, show in shown]
    refused = [
        f"  Counted as 0: {len(row.refused)} of {row.targets} targets that this model cannot satisfy, such as {each}"
        for each in row.refused[:1]
    ]
    if row.unchecked:
        rest = (
            f"'{ALL}' is of the other {row.targets - len(row.unchecked)} targets, '{SCORE}' of the controls that can be checked"
        )
        there = f"{len(row.unchecked)} of {row.targets} targets have a control that the annotator cannot check"
        refused.append(f"  Not checked: {there}, such as {row.unchecked[0]}: {rest}")
    return [*aligned([(f"{row.system}: " if named else "") + row.task + at, *sources], rows), *refused]


def draw_control(report: ControlReport, folder: Path) -> None:
    """Write ``control.png``; see ``control_figure``."""
    plots.save(control_figure(report), folder / "control.png")


def control_figure(report: ControlReport) -> Figure:
    """Draw perplexity against success: a line per task over strengths, unguided and reference texts."""
    tasks: dict[tuple[str, str], list[ControlRow]] = {}
    for row in report.rows:
        if STEERED in row.metrics.get(ALL, {}):
            tasks.setdefault((row.system, row.task), []).append(row)
    several = len({system for system, _ in tasks}) > 1
    lines = [_task_line(rows, f"{system}: {task}" if several else task) for (system, task), rows in tasks.items()]
    known = [row for rows in tasks.values() for row in rows if REFERENCE in row.perplexity]
    at = {_point(row, REFERENCE)[:2]: row for row in known}  # a task's strengths share their reference texts
    for number, row in enumerate(at.values()):
        point = _point(row, REFERENCE, row.task if len(at) > 1 else "")
        lines.append(plots.Line(REFERENCE if number == 0 else "", [point], peer=True))
    title = "texts that satisfy every control, by guidance strength (0: unguided)"
    return plots.frontier(lines, title, "control success (% of samples)")


def _task_line(rows: list[ControlRow], label: str) -> plots.Line:
    """Return a task's points over strengths, from the unguided texts on."""
    rows = sorted(rows, key=lambda row: row.strength or 0)
    points = [_point(row, STEERED, strength_mark(row.strength)) for row in rows]
    if UNGUIDED in rows[0].metrics[ALL] and 0 not in [row.strength for row in rows]:
        points.insert(0, _point(rows[0], UNGUIDED, "0"))
    return plots.Line(label, points, ordered=True)


def _point(row: ControlRow, source: str, mark: str = "") -> tuple[float, float, float, str]:
    """Return success in % and perplexity of a row's texts, the perplexity's standard error, and the ``mark``."""
    judged = row.perplexity[source]
    return 100 * row.metrics[ALL][source].mean, judged.mean, judged.error or 0.0, mark
