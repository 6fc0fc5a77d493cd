"""The report of ``evaluate``: rows of figures, likelihoods, the table and the figures.

A *system* is a model, another system's texts, the reference texts, or the judge LM. A *frontier* is the rows of one system
over temperatures, at one number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from diffusionlm import plots
from diffusionlm.evaluation.jobs import REFERENCE, ResumableReport, Row
from diffusionlm.evaluation.over_evaluations import AtEvaluations, at_evaluations, evaluations_figure, evaluations_lines
from diffusionlm.evaluation.text_metrics import Comparison, Diversity, Point, at_entropy, compare
from diffusionlm.pipelines.budget import SPENT
from diffusionlm.pipelines.cost import Cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_A_POINT = ("steps", "temperature")


@dataclass(frozen=True)
class Pace:
    """The number of ``steps`` or of ``evaluations``, which decide the steps, that a model is sampled with; None without any."""

    steps: int | None = None
    evaluations: int | None = None

    def __str__(self) -> str:
        """The end of a label; empty without any number."""
        given = ((number, name) for name, number in asdict(self).items() if number is not None)
        return next((f"{number} {name.removesuffix('s') if number == 1 else name}" for number, name in given), "")


NO_PACE = Pace()


@dataclass(frozen=True)
class EvaluationRow(Row):
    """Figures of one system's texts at one setting.

    ``judge_perplexity`` is per token of the judge LM, ``judge_error`` its standard error over texts. ``metrics`` are the
    corpus's own, each a mean over the texts that it applies to. ``seconds`` is the sampling time, ``lengths`` maps a number
    of words to a number of texts. ``cost`` is that of a model's text, None of other texts and of rows without it.
    ``fingerprint`` and ``settings`` determine the texts.
    """

    system: str
    kind: Literal["real", "judge", "model", "texts"]
    steps: int | None
    temperature: float | None
    judge_perplexity: float
    judge_error: float
    diversity: Diversity
    metrics: dict[str, float | None]
    seconds: float
    lengths: dict[int, int]
    fingerprint: str
    settings: dict[str, Any]
    cost: Cost | None = None
    evaluations: int | None = None

    @property
    def pace(self) -> Pace:
        """The number of steps or evaluations that the row was sampled with."""
        return Pace(self.steps, self.evaluations)

    @property
    def frontier(self) -> str:
        """The label of the frontier: its system, and its steps or evaluations where it has any."""
        return f"{self.system}, {self.pace}" if str(self.pace) else self.system

    @property
    def mark(self) -> str:
        """The temperature, empty without one."""
        return "" if self.temperature is None else f"{self.temperature:g}"

    @property
    def shared_settings(self) -> dict[str, Any]:
        """The settings that all frontiers of a system share: all but temperature, steps and what evaluations decide."""
        own = OF_A_POINT if self.evaluations is None else (*OF_A_POINT, *SPENT, "guidance", "noise_shift")
        sampling = {name: value for name, value in self.settings.get("sampling", {}).items() if name not in own}
        return {**self.settings, "sampling": sampling}

    def replaces(self, other: Self) -> bool:
        """Return whether ``other`` is a row of the same system with other settings, hence of another frontier."""
        same_kind = (self.evaluations is None) == (other.evaluations is None)
        return self.system == other.system and same_kind and self.shared_settings != other.shared_settings


@dataclass(frozen=True)
class Likelihood(Row):
    """Likelihood of held-out texts in nats and bits: ``exact`` of an autoregressive model, else an upper bound with its terms.

    Nats are per token, counting words and EOS, never BOS or padding. ``error`` is their standard error over texts,
    ``estimate_error`` that of the bound's Monte Carlo estimate alone, ``difference_error`` that of the difference from the
    judge LM. The judge's nats on the same texts are exact, and divided by the same number of tokens.
    """

    system: str
    fingerprint: str
    settings: dict[str, Any]
    exact: bool
    texts: int
    tokens: int
    nats_per_token: float
    error: float
    estimate_error: float
    bits_per_character: float
    terms: dict[str, float]
    judge_nats_per_token: float
    judge_bits_per_character: float
    difference_error: float
    orders: int = 0

    def replaces(self, other: Self) -> bool:
        """Return whether ``other`` is the same kind of bound (joint or any-order) of the same system."""
        return (self.system, self.orders > 0) == (other.system, other.orders > 0)


@dataclass
class Report(ResumableReport):
    """``evaluation.json``: models, other systems' texts and reference texts under one judge LM."""

    FILE: ClassVar[str] = "evaluation.json"
    ROWS: ClassVar[dict[str, type[Row]]] = {"rows": EvaluationRow, "likelihoods": Likelihood}

    rows: list[EvaluationRow] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)

    @property
    def reference(self) -> list[EvaluationRow]:
        """The row of the reference texts, if it is there yet."""
        return [row for row in self.rows if row.kind == "real"]

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON values, with the figures that follow from the rows."""
        return {
            **super().plain(),
            "at_real_entropy": self.at_reference_entropy(),
            "over_evaluations": {system: [asdict(one) for one in found] for system, found in self.over_evaluations().items()},
            "comparisons": [
                {"frontiers": [one, other], **asdict(comparison)} for one, other, comparison in self.comparisons()
            ],
        }  # fmt: skip

    def at_reference_entropy(self) -> dict[str, float | None]:
        """Return each frontier's judge perplexity at the entropy of the reference texts."""
        return {
            frontier: at_entropy(points(rows), real.diversity.entropy)
            for real in self.reference[:1]
            for frontier, rows in self.frontiers().items()
        }

    def frontiers(self) -> dict[str, list[EvaluationRow]]:
        """Return the rows of each frontier, by temperature; the reference texts have none."""
        found: dict[str, list[EvaluationRow]] = {}
        order = list(dict.fromkeys(row.system for row in self.rows))

        def place(row: EvaluationRow) -> tuple[float, ...]:
            return order.index(row.system), row.steps or 0, row.evaluations or 0, row.temperature or 0

        for row in sorted(self.rows, key=place):
            if row.kind != "real":
                found.setdefault(row.frontier, []).append(row)
        return found

    def over_evaluations(self) -> dict[str, list[AtEvaluations]]:
        """Return each system's figures at the entropy of the reference texts, for every number of evaluations."""
        found: dict[str, list[AtEvaluations]] = {}
        for rows in self.frontiers().values() if self.reference else ():
            if rows[0].evaluations is not None:
                at = at_evaluations(rows, self.reference[0].diversity.entropy)
                found.setdefault(rows[0].system, []).append(at)
        return found

    def comparisons(self) -> list[tuple[str, str, Comparison]]:
        """Compare each frontier with every earlier one of another system, at equal entropy and, where both have one, pace."""
        found = []
        frontiers = [item for item in self.frontiers().items() if len(item[1]) > 1]
        for number, (one, rows) in enumerate(frontiers):
            for other, earlier in frontiers[:number]:
                paces = {rows[0].pace, earlier[0].pace}
                if rows[0].system != earlier[0].system and (NO_PACE in paces or len(paces) == 1):
                    if comparison := compare(points(rows), points(earlier), places=9):
                        found.append((one, other, comparison))
        return found


def points(rows: Sequence[EvaluationRow]) -> list[Point]:
    """Return (entropy, judge perplexity) of each row."""
    return [(row.diversity.entropy, row.judge_perplexity) for row in rows]


def table(report: Report) -> str:
    """Return the report as a table with explanations."""
    about, rows = report.about, [*report.reference, *(row for rows in report.frontiers().values() for row in rows)]
    settings = f"{about['count']} texts per row, seed {about['seed']}; reference texts: {about['split']}"
    explained = EXPLAINED + OWN_METRICS * any(row.metrics for row in rows) + _conditions(report)
    details = [*_comparison_lines(report), *evaluations_lines(report), *_likelihood_lines(report)]
    return report.table(f"judge LM {about['judge']}; {settings}", [format_row(row) for row in rows], explained, details)


EXPLAINED = [
    "Compare perplexities at the entropy of the reference texts: repetitive texts have a low perplexity too, and the judge LM",
    "prefers its own samples. evals: evaluations of the network per candidate; entropy: of words, nats; self-BLEU: 0 to 100,",
    "lower is more diverse; unique, copied (training texts): shares of the texts; lengths: earth mover's distance to the",
    "training texts' lengths, words.",
]
OWN_METRICS = ["The columns after lengths are the corpus's own metrics, means over the texts that they apply to."]


def _conditions(report: Report) -> list[str]:
    """Return lines on each model that is conditioned."""
    lines = []
    for system, about in report.systems.items():
        if about.get("condition"):
            keys = " and ".join(about["condition"])
            once = f"of the reference texts ({report.about['split']}), each used once, the same at every setting"
            lines += [
                f"{system}: samples are conditional on the {keys} {once};",
                f"the likelihood of a text is given its own {keys}.",
            ]
    return [*lines, "The judge LM has no condition."] if lines else []


def format_row(row: EvaluationRow) -> dict[str, str]:
    """Return a row's figures by column of the table; a dash where it has none."""
    measured = row.diversity
    figures: dict[str, tuple[Any, str]] = {
        "system": (row.system, ""),
        "steps": (row.settings["sampling"]["steps"] if row.evaluations else row.steps, "d"),
        "evals": (row.cost.per_candidate if row.cost and row.cost.evaluations else None, ".4g"),
        "temp.": (row.temperature, ".2f"),
        "judge-ppl": (row.judge_perplexity, ".2f"),
        "±s.e.": (row.judge_error, ".2f"),
        "entropy": (measured.entropy, ".3f"),
        "dist-1": (measured.distinct_1, ".3f"),
        "dist-2": (measured.distinct_2, ".3f"),
        "dist-3": (measured.distinct_3, ".3f"),
        "self-BLEU": (measured.self_bleu, ".1f"),
        "unique": (measured.unique, ".1%"),
        "copied": (measured.copied, ".1%"),
        "lengths": (measured.length_distance, ".2f"),
        **{name: (value, ".3f") for name, value in row.metrics.items()},
    }
    return {name: "-" if value is None else format(value, pattern) for name, (value, pattern) in figures.items()}


def _comparison_lines(report: Report) -> list[str]:
    lines = []
    if known := {name: value for name, value in report.at_reference_entropy().items() if value is not None}:
        lines += ["", "Judge perplexity at the entropy of the reference texts (log-linear between temperatures)"]
        lines += [f"  {name}: {value:.2f}" for name, value in known.items()]
    if compared := report.comparisons():
        lines += ["", "Ratio of judge perplexities at equal entropy, over the range of entropy that both frontiers cover"]
        lines += [
            f"  {one} against {other}: {c.ratio:.2f} (entropy {c.entropies[0]:.2f} to {c.entropies[-1]:.2f})"
            for one, other, c in compared
        ]
    return lines


def _likelihood_lines(report: Report) -> list[str]:
    if not report.likelihoods:
        return []
    lines = ["", "Likelihood of held-out texts (tokens: the words and EOS; bounds are upper bounds)"]
    for found in report.likelihoods:
        terms = ", ".join(f"{name} {value:.3f}" for name, value in found.terms.items() if value)
        difference = found.nats_per_token - found.judge_nats_per_token
        name = found.system + f", any-order bound, {found.orders} orders" * (found.orders > 0)
        lines += [
            f"  {name}: {'exactly' if found.exact else 'at most'} {found.nats_per_token:.3f} ± {found.error:.3f} nats"
            f" per token, {found.bits_per_character:.3f} bits per character, on {found.texts} texts"
            + (f"\n    {terms}; standard error of the estimate {found.estimate_error:.3f}" if terms else ""),
            f"    judge LM on the same texts, exactly: {found.judge_nats_per_token:.3f} nats per token,"
            f" {found.judge_bits_per_character:.3f} bits per character;"
            f" difference {difference:+.3f} ± {found.difference_error:.3f}",
        ]
    return lines


def frontier_figure(report: Report) -> Figure:
    """Draw judge perplexity against entropy: the frontiers, and the reference texts where they are in the report."""
    lines = []
    for frontier, rows in [*((REFERENCE, [row]) for row in report.reference[:1]), *report.frontiers().items()]:
        shown = [(*point, row.judge_error, row.mark) for point, row in zip(points(rows), rows, strict=True)]
        lines.append(plots.Line(frontier, shown, peer=rows[0].kind in ("real", "judge")))
    return plots.frontier(lines, f"{report.about['count']} texts per point, labelled with the temperature")


def draw(report: Report, training_lengths: dict[int, int], folder: Path) -> None:
    """Write ``frontier.png``, ``lengths.png`` and, for models with several numbers of evaluations, ``evaluations.png``."""
    real = report.reference[0]
    histograms, longest = {"training texts": training_lengths, REFERENCE: real.lengths}, {}
    for rows in [[real], *report.frontiers().values()]:
        nearest = min(rows, key=lambda row: abs((row.temperature or 1) - 1))
        longest[nearest.system] = nearest  # of each system, at its most steps
    for row in longest.values():
        histograms[row.frontier + f", temperature {row.mark}" * bool(row.mark)] = row.lengths
    if (figure := evaluations_figure(report)) is not None:
        plots.save(figure, folder / "evaluations.png")
    plots.save(frontier_figure(report), folder / "frontier.png")
    plots.save(plots.lengths(histograms), folder / "lengths.png")
