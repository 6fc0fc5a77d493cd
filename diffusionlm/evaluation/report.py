"""What an evaluation has found, as a file that later calls add to, a table to read and figures.

A *system* is a model, another system's texts, real text or the judge itself; a row is what one of them wrote at one
setting. A *frontier* is a system's rows over temperatures, at one number of steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from diffusionlm import plots
from diffusionlm.config import UserError, build, to_plain
from diffusionlm.evaluation.provenance import machine
from diffusionlm.evaluation.text_metrics import Comparison, Diversity, Point, at_entropy, compare
from diffusionlm.files import disk_errors

REAL, JUDGE = "real text", "the judge"
OF_A_POINT = ("steps", "temperature")


@dataclass(frozen=True)
class EvaluationRow:
    """What a system wrote at one setting, or real text, measured.

    ``judge_perplexity`` is a token of the judge's, with its standard error over texts; ``accepted`` is the share that the
    embedded corpus's grammar accepts, ``new`` that of the accepted that are not training texts. ``seconds`` took the
    writing; ``lengths`` maps a number of words to that of texts. ``fingerprint`` and ``settings`` say what would give the
    same again.
    """

    system: str
    kind: Literal["real", "judge", "model", "texts"]
    steps: int | None
    temperature: float | None
    judge_perplexity: float
    judge_error: float
    diversity: Diversity
    accepted: float | None
    new: float | None
    seconds: float
    lengths: dict[int, int]
    fingerprint: str
    settings: dict[str, Any]

    @property
    def manner(self) -> dict[str, Any]:
        """The settings that all points of a frontier share: all but steps and temperature."""
        sampling = {name: value for name, value in self.settings.get("sampling", {}).items() if name not in OF_A_POINT}
        return {**self.settings, "sampling": sampling}


@dataclass(frozen=True)
class Likelihood:
    """Nats and bits of real held-out texts: ``exact`` of an autoregressive model, else a bound with its terms.

    Nats a token count every word and the end, never start or padding; ``error`` is their standard error over texts,
    ``estimate_error`` what the draws of a bound alone have in it, ``difference_error`` that of the difference from the
    judge. The judge's figures are exact, on the same texts, over the same number of tokens whatever its own tokenizer.
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


@dataclass
class ResumableReport:
    """What a file holds that later calls add to: ``about`` is what all of it shares, ``systems`` describes each."""

    FILE: ClassVar[str]

    about: dict[str, Any]
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, about: dict[str, Any]) -> Self:
        """Go on with what is in ``folder``, or begin.

        Raises:
            UserError: the folder holds other files, a damaged report, or one about another judge, corpus, seed or count.
        """
        path = None if folder is None else folder / cls.FILE
        if path is None or not path.exists():
            if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"{folder}: expected an empty or new folder, or an evaluation's, but it holds other files")
            return cls(about)
        try:
            plain = json.loads(path.read_text())
            known = {field.name: plain[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path}: this evaluation is damaged; choose another --out") from None
        report = build(cls, known, str(path))
        for key in [*about, *report.about]:
            if key != "judge" and report.about.get(key) != about.get(key):  # a judge's fingerprint says whether it is the same
                what = f"its {key} is {report.about.get(key)}, not {about.get(key)}"
                raise UserError(f"{folder}: holds another evaluation ({what}); choose another --out")
        return report

    def save(self, folder: Path | None) -> None:
        """Write the file, replaced whole."""
        if folder is not None:
            write(folder / self.FILE, json.dumps(self.plain(), indent=2, ensure_ascii=False) + "\n")

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON has it, and the machine."""
        return {**to_plain(self), "machine": machine()}


@dataclass
class Report(ResumableReport):
    """``evaluation.json``: models, texts of other systems, and real text under one judge."""

    FILE: ClassVar[str] = "evaluation.json"

    rows: list[EvaluationRow] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)

    def enter(self, system: str, description: dict[str, Any]) -> None:
        """Describe a system, and forget what a system of that name wrote before it changed."""
        fingerprint = description["fingerprint"]
        self.rows = [row for row in self.rows if row.system != system or row.fingerprint == fingerprint]
        self.likelihoods = [row for row in self.likelihoods if row.system != system or row.fingerprint == fingerprint]
        self.systems[system] = description

    def add(self, row: EvaluationRow | Likelihood, folder: Path | None) -> None:
        """Take a row and write the file anew; what the system wrote in another manner is no part of its frontier any more."""
        if isinstance(row, EvaluationRow):
            self.rows = [known for known in self.rows if known.system != row.system or known.manner == row.manner] + [row]
        else:
            key = (row.system, row.orders > 0)
            self.likelihoods = [known for known in self.likelihoods if (known.system, known.orders > 0) != key] + [row]
        self.save(folder)

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON has it, with what follows from the rows."""
        real = next((row for row in self.rows if row.kind == "real"), None)
        return {
            **super().plain(),
            "at_real_entropy": {
                frontier_name(key): real and at_entropy(points(rows), real.diversity.entropy)
                for key, rows in self.frontiers().items()
            },
            "comparisons": [
                {"one": one, "other": other, **asdict(comparison)} for one, other, comparison in self.comparisons()
            ],
        }  # fmt: skip

    def frontiers(self) -> dict[tuple[str, int | None], list[EvaluationRow]]:
        """Return the rows of each (system, steps) that is not real text, by temperature."""
        found: dict[tuple[str, int | None], list[EvaluationRow]] = {}
        for row in sorted(self.rows, key=lambda row: (row.steps or 0, row.temperature or 0)):
            if row.kind != "real":
                found.setdefault((row.system, row.steps), []).append(row)
        order = list(dict.fromkeys(row.system for row in self.rows))
        return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))

    def comparisons(self) -> list[tuple[str, str, Comparison]]:
        """Compare each frontier with every earlier one of another system, at equal entropy and, where both have it, steps."""
        found = []
        frontiers = [item for item in self.frontiers().items() if len(item[1]) > 1]
        for number, (one, rows) in enumerate(frontiers):
            for other, earlier in frontiers[:number]:
                if one[0] != other[0] and (None in (one[1], other[1]) or one[1] == other[1]):
                    if comparison := compare(points(rows), points(earlier), places=9):
                        found.append((frontier_name(one), frontier_name(other), comparison))
        return found


def points(rows: Sequence[EvaluationRow]) -> list[Point]:
    """Return (entropy, judge perplexity) of each row."""
    return [(row.diversity.entropy, row.judge_perplexity) for row in rows]


def frontier_name(key: tuple[str, int | None]) -> str:
    """Return what a frontier is called: its system, and its steps where it has any."""
    return key[0] if key[1] is None else f"{key[0]}, {key[1]} steps"


def table(report: Report) -> str:
    """Return what an evaluation has found, to read."""
    about, columns = report.about, [*COLUMNS, *(GRAMMAR if any(row.accepted is not None for row in report.rows) else [])]
    rows = [*(r for r in report.rows if r.kind == "real"), *(r for rows in report.frontiers().values() for r in rows)]
    cells = [columns, *([format_cell(row, name) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [f"judge {about['judge']}; {about['count']} texts a row, seed {about['seed']}; real text: {about['split']}", ""]
    for line in cells:
        lines.append("  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]))
    lines += ["", *_explained("accepted" in columns)]
    at_real = [(name, value) for name, value in report.plain()["at_real_entropy"].items() if value is not None]
    if at_real:
        lines += ["", "Judge perplexity at the entropy of real text (between temperatures, log-linear)"]
        lines += [f"  {name}: {value:.2f}" for name, value in at_real]
    if compared := report.comparisons():
        lines += ["", "At equal entropy, over the range that both cover, judge perplexity as a multiple"]
        lines += [
            f"  {one} against {other}: {c.ratio:.2f} (entropy {c.entropies[0]:.2f} to {c.entropies[-1]:.2f})"
            for one, other, c in compared
        ]
    return "\n".join(lines + _likelihood_lines(report) + _system_lines(report)) + "\n"


COLUMNS = ["system", "steps", "temp.", "judge-ppl", "±s.e.", "entropy", "dist-1", "dist-2", "dist-3", "self-BLEU"]
COLUMNS += ["unique", "copied", "lengths"]
GRAMMAR = ["accepted", "new"]


def format_cell(row: EvaluationRow, column: str) -> str:
    """Return a row's figure for a column of the table; a dash where it has none."""
    value, pattern = {
        "system": (row.system, ""),
        "steps": (row.steps, "d"),
        "temp.": (row.temperature, ".2f"),
        "judge-ppl": (row.judge_perplexity, ".2f"),
        "±s.e.": (row.judge_error, ".2f"),
        "entropy": (row.diversity.entropy, ".3f"),
        "dist-1": (row.diversity.distinct_1, ".3f"),
        "dist-2": (row.diversity.distinct_2, ".3f"),
        "dist-3": (row.diversity.distinct_3, ".3f"),
        "self-BLEU": (row.diversity.self_bleu, ".1f"),
        "unique": (row.diversity.unique, ".1%"),
        "copied": (row.diversity.copied, ".1%"),
        "lengths": (row.diversity.length_distance, ".2f"),
        "accepted": (row.accepted, ".1%"),
        "new": (row.new, ".1%"),
    }[column]
    return "-" if value is None else format(value, pattern)


def _explained(grammar: bool) -> list[str]:
    return [
        "Low perplexity counts only beside real text's entropy: repetition is fluent too. The judge favours its own texts.",
        "entropy: of the words, nats; self-BLEU: 0 to 100, lower is more diverse; unique, copied (training texts): shares;",
        "lengths: earth mover's distance to the training texts' lengths, words."
        + (" accepted: by the grammar; new: of those, not copied." if grammar else ""),
    ]


def _likelihood_lines(report: Report) -> list[str]:
    if not report.likelihoods:
        return []
    lines = ["", "Likelihood of real text (a token: every word and the end; a bound is from above)"]
    for found in report.likelihoods:
        terms = ", ".join(f"{name} {value:.3f}" for name, value in found.terms.items() if value)
        difference = found.nats_per_token - found.judge_nats_per_token
        name = found.system + f", words in turn, {found.orders} orders" * (found.orders > 0)
        lines += [
            f"  {name}: {'exactly' if found.exact else 'at most'} {found.nats_per_token:.3f} ± {found.error:.3f} nats"
            f" a token, {found.bits_per_character:.3f} bits a character, on {found.texts} texts"
            + (f"\n    {terms}; the draws' own error {found.estimate_error:.3f}" if terms else ""),
            f"    the judge, exactly, on the same: {found.judge_nats_per_token:.3f} nats a token,"
            f" {found.judge_bits_per_character:.3f} bits a character; {difference:+.3f} ± {found.difference_error:.3f}",
        ]
    return lines


def _system_lines(report: Report) -> list[str]:
    lines = ["", "Who was asked"]
    for name, about in report.systems.items():
        parts = [about["family"], f"{about['parameters']:,} parameters" if "parameters" in about else ""]
        if "training_tokens" in about:
            took = f" in {about['training_seconds']:,.0f} seconds" if "training_seconds" in about else ""
            parts.append(f"trained on {about['training_tokens']:,} tokens{took}")
        if "training_processor_seconds" in about:
            parts.append(f"{about['training_processor_seconds']:,.0f} of the processor")
        lines.append(f"  {name} ({about['folder']}): {', '.join(filter(None, parts))}")
    return lines


def draw(report: Report, training_lengths: dict[int, int], folder: Path) -> None:
    """Write ``frontier.png`` and ``lengths.png``."""
    real = [row for row in report.rows if row.kind == "real"]
    lines = [
        plots.Line(REAL, points(real), [""], [real[0].judge_error], peer=True),
        *(
            plots.Line(
                frontier_name(key), points(rows),
                ["" if row.temperature is None else f"{row.temperature:g}" for row in rows],
                [row.judge_error for row in rows], peer=rows[0].kind == "judge",
            )
            for key, rows in report.frontiers().items()
        ),
    ]  # fmt: skip
    title = f"{report.about['count']} texts a point, marked with its temperature"
    histograms = {"training texts": training_lengths, REAL: real[0].lengths}
    longest = {key[0]: rows for key, rows in report.frontiers().items()}  # of each system, at its most steps
    for rows in longest.values():
        nearest = min(rows, key=lambda row: abs((row.temperature or 1) - 1))
        mark = "" if nearest.temperature is None else f", temperature {nearest.temperature:g}"
        histograms[frontier_name((nearest.system, nearest.steps)) + mark] = nearest.lengths
    with disk_errors(folder):
        plots.save(plots.frontier(lines, title), folder / "frontier.png")
        plots.save(plots.lengths(histograms), folder / "lengths.png")


def write(path: Path, text: str) -> None:
    """Write a file, replaced whole.

    Raises:
        UserError: it cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(path.suffix + ".new")
        staged.write_text(text)
        staged.replace(path)
