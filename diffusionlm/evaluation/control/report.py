"""What an evaluation of control has found: a file that later calls add to, a table to read and a figure.

A row is one task at one strength: how many of its texts are what was asked, and beside that what it cost in fluency, in
variety and in work. No figure stands alone: each success has that of unguided texts of the same seeds and that of real text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from diffusionlm import plots
from diffusionlm.evaluation.control.metrics import ALL, SCORE, Estimate
from diffusionlm.evaluation.report import ResumableReport
from diffusionlm.evaluation.text_metrics import Diversity
from diffusionlm.files import disk_errors

ACCEPTED = "accepted by the grammar"
STEERED, UNGUIDED, REAL, LEFT_ONLY = "steered", "unguided", "real text", "judge, left only"
SOURCES = (STEERED, UNGUIDED, REAL, LEFT_ONLY)


@dataclass(frozen=True)
class Work:
    """What a text took, on average.

    Attributes:
        evaluations: of the denoiser, all passes, sweeps, particles and tries counted.
        backwards: those of them that a gradient went back through.
        classifications: passes of classifiers.
        seconds: on the clock, batched as the sampling says.
    """

    evaluations: float
    backwards: float
    classifications: float
    seconds: float


@dataclass(frozen=True)
class ControlRow:
    """A task at one strength.

    Attributes:
        system: the model.
        task: its title.
        strength: of the guidance; None where no gradient steers.
        targets: how many were asked.
        refused: those of them that this model cannot be asked, with the reason; they count as 0 in every metric.
        samples: texts for each target.
        metrics: by metric, then by who wrote the texts (steered, unguided, real text, peers).
        perplexity: under the judge, by who wrote the texts.
        distinct: of one target's texts, the share of different ones.
        diversity: of all steered texts together.
        work: what a steered text took.
        unguided_work: what an unguided text took.
        fingerprint: of the model.
        settings: what else settles the texts and the metrics.
        digest: of the texts, so that a row is known to be theirs.
    """

    system: str
    task: str
    strength: float | None
    targets: int
    refused: tuple[str, ...]
    samples: int
    metrics: dict[str, dict[str, Estimate]]
    perplexity: dict[str, Estimate]
    distinct: float
    diversity: Diversity
    work: Work
    unguided_work: Work
    fingerprint: str
    settings: dict[str, Any]
    digest: str

    @property
    def key(self) -> tuple[str, str, float | None]:
        """What a later row with other texts replaces."""
        return self.system, self.task, self.strength


@dataclass
class ControlReport(ResumableReport):
    """``control.json``: tasks under one judge."""

    FILE: ClassVar[str] = "control.json"

    rows: list[ControlRow] = field(default_factory=list)

    def enter(self, system: str, description: dict[str, Any]) -> None:
        """Describe a model, and forget its rows from before it changed."""
        self.rows = [row for row in self.rows if row.system != system or row.fingerprint == description["fingerprint"]]
        self.systems[system] = description

    def add(self, row: ControlRow, folder: Path | None) -> None:
        """Take a row, in place of one of its kind, and write the file anew."""
        same = [i for i, known in enumerate(self.rows) if known.key == row.key]
        self.rows = [*self.rows[: same[0]], row, *self.rows[same[0] + 1 :]] if same else [*self.rows, row]
        self.save(folder)


COLUMNS = ["task", "strength", "asked", "score", "all passed", "judge-ppl", "unguided", "real text", "distinct"]
COLUMNS += ["entropy", "copied", "accepted", "calls", "back", "classif.", "seconds"]


def control_table(report: ControlReport) -> str:
    """Return what was found, to read."""
    systems = dict.fromkeys(row.system for row in report.rows)
    rows = [row for system in systems for row in report.rows if row.system == system]
    names = [*(["system"] if len(systems) > 1 else []), *COLUMNS]
    names = [name for name in names if name != "accepted" or any(ACCEPTED in row.metrics for row in rows)]
    cells = [names, *([cell(row, name) for name in names] for row in rows)]
    lines = [f"judge {report.about['judge']}; mean ± standard error over targets", "", *aligned(cells), ""]
    lines += [*EXPLAINED, *([PEER] if any(LEFT_ONLY in row.perplexity for row in rows) else [])]
    for row in rows:
        lines += ["", *_detail_lines(row, len(systems) > 1)]
    lines += ["", "Who was asked"]
    for name, about in report.systems.items():
        lines.append(f"  {name} ({about['folder']}): {about['family']}, {about['parameters']:,} parameters")
    return "\n".join(lines) + "\n"


EXPLAINED = [
    "asked: targets, and texts for each. score: of the controls, 0 to 100; all passed: texts that pass every control.",
    "judge-ppl: the judge's perplexity of the steered texts, of unguided ones of the same seeds, of the targets' real texts.",
    "distinct: of one target's texts; entropy (nats), copied (training texts): of all of the row's texts together.",
    "accepted: by the grammar. A text took so many calls of the denoiser, of which a gradient went back through so many,",
    "passes of classifiers, and seconds.",
]
PEER = (
    "judge, left only: it fills gaps knowing the left side and how many words were hidden; unguided: its words in that place."
)


def cell(row: ControlRow, column: str) -> str:
    """Return a row's figure for a column of the table; a dash where it has none."""
    match column:
        case "system" | "task":
            return str(getattr(row, column))
        case "strength":
            return "-" if row.strength is None else f"{row.strength:g}"
        case "asked":
            return f"{row.targets} x {row.samples}" + (f" ({len(row.refused)} refused)" if row.refused else "")
        case "score":
            return percent(row.metrics[SCORE][STEERED])
        case "all passed":
            return percent(row.metrics[ALL][STEERED])
        case "judge-ppl":
            return figure(row.perplexity.get(STEERED))
        case "unguided" | "real text":
            return figure(row.perplexity.get(column))
        case "distinct":
            return f"{row.distinct:.1%}"
        case "entropy":
            return f"{row.diversity.entropy:.3f}"
        case "copied":
            return f"{row.diversity.copied:.1%}"
        case "accepted":
            return percent(row.metrics.get(ACCEPTED, {}).get(STEERED))
        case "seconds":
            return f"{row.work.seconds:.2g}"
    name = {"calls": "evaluations", "back": "backwards", "classif.": "classifications"}[column]
    return f"{getattr(row.work, name):.4g}"


def percent(value: Estimate | None) -> str:
    """Return a share as a percentage with its standard error."""
    if value is None:
        return "-"
    return f"{100 * value.mean:.1f}" + ("" if value.error is None else f" ± {100 * value.error:.1f}")


def figure(value: Estimate | None) -> str:
    """Return a number with its standard error."""
    if value is None:
        return "-"
    return f"{value.mean:.2f}" + ("" if value.error is None else f" ± {value.error:.2f}")


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]


def _detail_lines(row: ControlRow, named: bool) -> list[str]:
    """Return every metric of a row, by who wrote the texts."""
    sources = [source for source in SOURCES if source in row.perplexity]
    at = "" if row.strength is None else f", strength {row.strength:g}"
    title = (f"{row.system}: " if named else "") + row.task + at
    lines = [
        [title, *sources],
        *([f"  {name}", *(percent(by.get(source)) for source in sources)] for name, by in row.metrics.items()),
        ["  perplexity under the judge", *(figure(row.perplexity[source]) for source in sources)],
    ]
    refused = [
        f"  Count as 0, as this model cannot be asked them: {len(row.refused)} of {row.targets} targets, such as {each}"
        for each in row.refused[:1]
    ]
    return [*aligned(lines), *refused]


def draw_control(report: ControlReport, folder: Path) -> None:
    """Write ``control.png``: perplexity against success, a line a task over strengths, and real text and unguided texts."""
    frontiers: dict[tuple[str, str], list[ControlRow]] = {}
    for row in report.rows:
        frontiers.setdefault((row.system, row.task), []).append(row)
    lines, several = [], len({row.system for row in report.rows}) > 1
    for (system, task), rows in frontiers.items():
        rows = sorted(rows, key=lambda row: row.strength or 0)
        steered = [
            (100 * row.metrics[ALL][STEERED].mean, row.perplexity[STEERED].mean, row.perplexity[STEERED].error or 0.0)
            for row in rows
        ]
        marks = ["" if row.strength is None else f"{row.strength:g}" for row in rows]
        free = rows[0].metrics[ALL].get(UNGUIDED)
        if free is not None and 0 not in [row.strength for row in rows]:
            judged = rows[0].perplexity[UNGUIDED]
            steered, marks = [(100 * free.mean, judged.mean, judged.error or 0.0), *steered], ["0", *marks]
        points, errors = [(x, y) for x, y, _ in steered], [error for _, _, error in steered]
        lines.append(plots.Line(f"{system}: {task}" if several else task, points, marks, errors, ordered=True))
    real = [row for row in report.rows if REAL in row.perplexity]
    if real:
        at = {(100 * row.metrics[ALL][REAL].mean, row.perplexity[REAL].mean): row for row in real}  # strengths share theirs
        lines += [
            plots.Line(
                REAL if i == 0 else "",
                [point],
                [row.task if len(at) > 1 else ""],
                [row.perplexity[REAL].error or 0.0],
                peer=True,
            )
            for i, (point, row) in enumerate(at.items())
        ]
    with disk_errors(folder):
        title = "texts that pass every control; marked with the strength (0: unguided)"
        plots.save(plots.frontier(lines, title, "share of the texts that are what was asked (%)"), folder / "control.png")
