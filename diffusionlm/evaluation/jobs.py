"""Resumable evaluations: jobs make the rows of a report in one JSON file.

``ResumableReport.run`` makes the rows that the report in the output folder does not hold, one after the other, and saves
the file after each. Processes that share the work sample and score texts together; the first alone computes and saves rows.
A new kind of row is a subclass of ``Row``, listed in a report's ``ROWS``, and jobs that make it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from tabulate import tabulate
from tqdm import tqdm

from diffusionlm import plots
from diffusionlm.config import Settings, UserError, build, to_plain
from diffusionlm.data.corpora import Corpus, Hub
from diffusionlm.data.streams import BUFFER, FIRST
from diffusionlm.evaluation.provenance import described, machine
from diffusionlm.files import LOCK, locked, read_json, write_text
from diffusionlm.processes import agreed, leads
from diffusionlm.progress import intervals

REFERENCE, JUDGE = "reference text", "judge LM"
LATER = {"noise_shift": 0.0}  # sampling settings that reports of earlier versions lack, and their value then
OF_STREAMS = {"first_texts": FIRST, "shuffle_buffer": BUFFER}  # likewise settings of corpora


class Row:
    """Base of the rows of a report; each is a frozen dataclass of figures of one ``system``.

    ``fingerprint`` identifies the model or file behind them: a report drops the rows of an earlier one.
    """

    system: str
    fingerprint: str

    def replaces(self, other: Self) -> bool:
        """Return whether a stored row ``other`` is dropped when this one is added."""
        raise NotImplementedError


Progress = Callable[[int], object]  # receives the number of texts processed since its last call


@dataclass(frozen=True)
class Job:
    """Makes one row of a report: ``measure`` computes it from what ``collect`` samples or scores.

    ``identity`` are fields of the row that determine all others; where a stored row has the same ones, none is made.
    ``title`` and the number of ``texts`` are for the progress bar, whose update both receive. Processes share the work of
    ``collect``, which returns nothing of use in all but the first.
    """

    identity: Mapping[str, Any]
    title: str
    texts: int
    collect: Callable[[Progress], Any]
    measure: Callable[[Any, Progress], Row]


@dataclass
class ResumableReport:
    """A report in the file ``FILE`` of the output folder, to which later calls add.

    ``about`` holds what all rows share, ``systems`` describes each system. ``ROWS`` maps a subclass's fields that hold rows
    to the kind of the rows.
    """

    FILE: ClassVar[str]
    ROWS: ClassVar[dict[str, type[Row]]]

    about: dict[str, Any]
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, about: dict[str, Any]) -> Self:
        """Return the report in ``folder``, or an empty one.

        Raises:
            UserError: the folder holds other files, a damaged report, or one with another judge, corpus, seed or count.
        """
        if folder is None or not folder.exists():
            return cls(about)
        path = folder / cls.FILE
        if not path.exists():
            # A call that was stopped before its first row may have left texts.
            if not folder.is_dir() or any(
                each.name not in ("texts", LOCK) and not each.name.endswith(".new") for each in folder.iterdir()
            ):
                raise UserError(f"{folder}: expected an empty or new folder, or an evaluation's, but it holds other files")
            return cls(about)
        report = cls.read(path)
        for key in [*about, *report.about]:
            if key != "judge" and report.about.get(key) != about.get(key):  # the judge's fingerprint is compared instead
                found = f"its {key} is {report.about.get(key)}, not {about.get(key)}"
                raise UserError(f"{folder}: holds another evaluation ({found}); choose another --out")
        return report

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the report in the file ``path``. Raises UserError where it is damaged."""
        try:
            plain = read_json(path)
            known = {field.name: plain[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path}: this evaluation is damaged; choose another --out") from None
        return build(cls, known, str(path))

    def enter(self, system: str, description: dict[str, Any]) -> None:
        """Describe a system, and drop the rows of an earlier model or file of that name."""
        for name in self.ROWS:
            rows = [r for r in getattr(self, name) if r.system != system or r.fingerprint == description["fingerprint"]]
            setattr(self, name, rows)
        self.systems[system] = description

    def enter_model(self, folder: str | Path, changes: Sequence[tuple[str, str]], model: Any) -> str:
        """Describe a model; return its label: its run's name with the changed settings, its folder where that is taken."""
        path = Path(folder).resolve()
        name, changed = path.parent.name if path.name == "model" else path.name, bracketed(changes)
        label = self.unique(name + changed, folder, f"{folder}{changed}")
        self.enter(label, described(folder, model))
        return label

    def unique(self, label: str, path: str | Path, other: str | None = None) -> str:
        """Return ``label``, or where another system has it the ``other`` one, by default the ``path``."""
        taken = label in (REFERENCE, JUDGE) or (label in self.systems and self.systems[label]["folder"] != str(path))
        return (other or str(path)) if taken else label

    def run(self, jobs: Sequence[Job], folder: Path | None, quiet: bool) -> None:
        """Make the rows that the report does not hold yet; each is saved at once, in place of those that it replaces."""
        stored = [vars(row).items() for name in self.ROWS for row in getattr(self, name)]
        absent = [i for i, job in enumerate(jobs) if not any(job.identity.items() <= row for row in stored)]
        missing = [jobs[i] for i in agreed(absent)]  # before the first of several processes changes what the others read
        if len(missing) < len(jobs) and not quiet:
            print(f"{len(jobs) - len(missing)} of {len(jobs)} rows are in the report already", file=sys.stderr)
        with tqdm(total=sum(job.texts for job in missing), unit="text", disable=quiet or not missing, **intervals()) as bar:
            for job in missing:
                bar.set_description(job.title, refresh=sys.stderr.isatty())
                collected = job.collect(bar.update)
                if not leads():
                    continue
                row = job.measure(collected, bar.update)
                name = next(name for name, kind in self.ROWS.items() if type(row) is kind)
                rows = getattr(self, name)
                first = next((i for i, old in enumerate(rows) if row.replaces(old)), len(rows))
                setattr(self, name, [*rows[:first], row, *(old for old in rows[first:] if not row.replaces(old))])
                self.save(folder)

    def save(self, folder: Path | None) -> None:
        """Write the JSON file."""
        if folder is not None and leads():
            write_text(folder / self.FILE, json.dumps(self.plain(), indent=2, ensure_ascii=False) + "\n")

    def finish(self, folder: Path | None, table: str, draw: Callable[[Path], None]) -> None:
        """Write the report, its ``table`` and, where matplotlib is installed, its figures."""
        if folder is None:
            return
        self.save(folder)
        write_text(folder / "table.txt", table)
        if plots.available():
            draw(folder)
        else:
            print("no figures: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON values, with the machine's description."""
        return {**to_plain(self), "machine": machine()}

    def short_labels(self) -> Callable[[str], str]:
        """Return what replaces the systems' labels in a line by those with ``named_functions``, where these are distinct."""
        short = {label: named_functions(label) for label in self.systems}
        counts = Counter(short.values())
        changed = {label: new for label, new in short.items() if new != label and counts[new] == 1}

        def shortened(line: str) -> str:
            for label in sorted(changed, key=len, reverse=True):
                line = line.replace(label, changed[label])
            return line

        return shortened

    def table(self, title: str, rows: Sequence[Mapping[str, str]], explained: Sequence[str], details: Iterable[str]) -> str:
        """Return ``rows`` of cells by column as a table, with explanations, further lines, and the evaluated models.

        Above the models, whose labels are complete, functions are shown by their name alone.
        """
        columns, short = list(dict.fromkeys(name for row in rows for name in row)), self.short_labels()
        header, *cells = ([short(row.get(name, "-")) for name in columns] for row in [{name: name for name in columns}, *rows])
        lines = [title, "", *aligned(header, cells), "", *map(short, [*explained, *details]), "", "Evaluated models"]
        for name, about in self.systems.items():
            parts = [about["family"], f"{about['parameters']:,} parameters" if "parameters" in about else ""]
            if "training_tokens" in about:
                took = f" in {about['training_seconds']:,.0f} seconds" if "training_seconds" in about else ""
                parts.append(f"trained on {about['training_tokens']:,} tokens{took}")
            if "training_processor_seconds" in about:
                parts.append(f"{about['training_processor_seconds']:,.0f} seconds of CPU time")
            lines.append(f"  {name} ({about['folder']}): {', '.join(filter(None, parts))}")
        return "\n".join(lines) + "\n"


@contextmanager
def claimed(folder: Path | None) -> Iterator[None]:
    """Hold the lock of an evaluation's folder: each of two calls would save its own rows alone.

    Of several processes that share the work, the first holds it. Raises UserError where another call holds it.
    """
    with locked(folder, "evaluating", keep=False) if folder is not None and leads() else nullcontext():
        yield


def plain_sampling(sampling: Settings) -> dict[str, Any]:
    """Return sampling settings as JSON values, so that rows of earlier versions are those of the same settings.

    Settings that came later are left out where they do nothing.
    """
    return {name: value for name, value in to_plain(sampling).items() if name not in LATER or value != LATER[name]}


def plain_corpus(corpus: Corpus) -> dict[str, Any]:
    """Return the settings of a corpus as JSON values; see ``plain_sampling``."""
    later = OF_STREAMS if isinstance(corpus, Hub) else {**OF_STREAMS, "streaming": False}
    return {name: value for name, value in to_plain(corpus).items() if name not in later or value != later[name]}


def named_functions(label: str) -> str:
    """Return ``label`` with the functions in its settings by their name, without the module of their import path."""
    return re.sub(r"\b(function) [\w.]+:([\w.]+)", r"\1 \2", label)


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a plain table's lines: the first column left-aligned, the others right-aligned."""
    align = ["left", *["right"] * (len(header) - 1)]
    text = tabulate([header, *rows], tablefmt="plain", disable_numparse=True, colalign=align, preserve_whitespace=True)
    return [line.rstrip() for line in text.splitlines()]


def bracketed(changes: Sequence[tuple[str, str]]) -> str:
    """Return the end of the label of a model with changed settings; "" without any."""
    return f" ({', '.join(f'{key} {value}' for key, value in changes)})" if changes else ""


def file_name(label: str) -> str:
    """Return ``label`` without characters that a file's name cannot have."""
    return label.replace("/", "-").replace(" ", "-")
