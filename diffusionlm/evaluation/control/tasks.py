"""Targets of a control evaluation, drawn from held-out texts so that each target is satisfiable.

A *target* is a list of controls, with the reference text that it was drawn from. A *task* draws targets of one kind; a task's
file in ``configs/control`` names the task, the corpus and its split, the number of targets, and the sampling settings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]

from diffusionlm.config import Component, Settings, UserError, build, override, read_value
from diffusionlm.controls import Attribute, Control, Infill, target_rows
from diffusionlm.controls.expression import TARGET_LINES
from diffusionlm.data.annotators import Annotator, CorpusRow, Reader
from diffusionlm.data.corpora import Corpus
from diffusionlm.data.reading import read_text


@dataclass(frozen=True)
class Gap:
    """A text in three parts, of which the middle one is hidden; blanks around it are not part of it."""

    left: str
    hidden: str
    right: str

    def filled(self, words: str) -> str:
        """Return the text with ``words`` in the gap."""
        return " ".join(filter(None, [self.left, words, self.right]))

    def put(self, texts: Sequence[str]) -> list[str]:
        """Return the texts with their own words at the place of the gap, between the given words."""
        first = len(self.left.split())
        last = first + len(self.hidden.split())
        return [self.filled(" ".join(text.split()[first:last])) for text in texts]


@dataclass(frozen=True)
class Target:
    """The controls of a target, the reference text that satisfies them, its gap, and the place in the user's file."""

    controls: tuple[Control, ...]
    reference: str | None = None
    gap: Gap | None = None
    place: str = ""


class Task(Component, family="task"):
    """Base of the tasks."""

    distinct: bool = False  # whether targets with the controls of an earlier one are left out

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Return a target that the text of ``row`` satisfies; None where the text gives none."""
        raise NotImplementedError

    def targets(self, rows: datasets.Dataset | None, reader: Reader, seed: int, count: int) -> list[Target]:
        """Return the first ``count`` targets, from texts in random order; ``seed`` decides the order and all choices.

        Raises UserError where there are fewer.
        """
        assert rows is not None
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        found: list[Target] = []
        for number in order:
            if len(found) == count:
                break
            target = self.target(rows[number], random.Random(f"{seed} {number}"), reader)
            if target and not (self.distinct and target.controls in [other.controls for other in found]):
                found.append(target)
        if len(found) < count:
            raise UserError(f"targets: expected at most {len(found)}, as many as these texts give, got {count}")
        return found


@dataclass(frozen=True)
class AttributeTargets(Task, name="attributes"):
    """``count`` of the attributes that a text states (semantic content), of ``fields`` only, where these are given.

    With ``distinct`` no two targets are equal, so that frequent values do not dominate.
    """

    fields: tuple[str, ...] = ()
    count: int = 1
    distinct: bool = False

    def __post_init__(self) -> None:
        self.expect("at least 1", "count")

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        stated = {f: v for f, v in sorted(reader.attributes(row).items()) if f in self.fields or not self.fields}
        if len(stated) < self.count:
            return None
        chosen = draw.sample(list(stated), self.count)
        return Target(tuple(Attribute(name, stated[name]) for name in chosen), row["text"])


class _OneControl(Task):
    """Base of the tasks whose targets have one control each: a subclass names it in ``control``."""

    control: str

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        control = Control.find(self.control).target_from(row, draw, reader)
        return None if control is None else Target((control,), row["text"])


@dataclass(frozen=True)
class ControlTargets(_OneControl, name="control"):
    """Targets of any control that has ``target_from``: ``control`` is its name, or the import path of a user-defined one."""

    control: str

    def __post_init__(self) -> None:
        if getattr(Control.find(self.control).target_from, "__func__", None) is vars(Control)["target_from"].__func__:
            raise UserError(f"control: {self.control!r} has no target_from, so no targets can be drawn from a text")


@dataclass(frozen=True)
class TagTargets(_OneControl, name="tags"):
    """The part of speech of every word of a text."""

    control = "parts-of-speech"


@dataclass(frozen=True)
class TreeTargets(_OneControl, name="tree"):
    """The complete tree of a text."""

    control = "tree"


@dataclass(frozen=True)
class SpanTargets(_OneControl, name="span"):
    """One constituent of a text, of two words or more, with its place."""

    control = "span"


@dataclass(frozen=True)
class LengthTargets(_OneControl, name="length"):
    """The length of a text in tokens."""

    control = "length"


@dataclass(frozen=True)
class InfillTargets(Task, name="infill"):
    """A text with a gap in its middle; texts with unknown words are skipped.

    Args:
        hidden: the smallest and the largest number of hidden words, punctuation counted with its word.
        context: the smallest number of words on each side.
        told: whether the control gives the number of hidden tokens; else the gap has any length.
    """

    hidden: tuple[int, int] = (2, 6)
    context: int = 3
    told: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.hidden[0] <= self.hidden[1]:
            raise UserError(f"hidden: expected 1 or more, the fewest words before the most, got {list(self.hidden)}")
        self.expect("0 or more", "context")

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        words = row["text"].split()
        unknown = reader.tokenizer.unk_token_id
        if unknown is not None and unknown in reader.tokenizer(row["text"])["input_ids"]:
            return None
        size = draw.randint(*self.hidden)
        last = len(words) - self.context - size
        if last < self.context or "{" in row["text"] or "}" in row["text"]:
            return None
        start = draw.randint(self.context, last)
        parts = (words[:start], words[start : start + size], words[start + size :])
        gap = Gap(*(" ".join(part) for part in parts))
        size = reader.length(row) - sum(reader.length({"text": part}) for part in (gap.left, gap.right))
        return Target((Infill(gap.filled(f"{{{size if self.told else ''}}}")),), row["text"], gap)


@dataclass(frozen=True)
class Composed(Task, name="composed"):
    """The controls of all ``tasks``, drawn from one text."""

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("tasks: expected at least one")

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        parts = [target for task in self.tasks if (target := task.target(row, draw, reader))]
        if len(parts) < len(self.tasks):
            return None
        gap = next((part.gap for part in parts if part.gap), None)
        return Target(tuple(control for part in parts for control in part.controls), row["text"], gap)


@dataclass(frozen=True)
class FileTargets(Task, name="file"):
    """The first targets of the .jsonl or .yaml file ``path``: rows with ``controls``, optionally ``reference`` and ``task``.

    If ``task`` is given, only its targets are read.
    """

    path: str
    task: str | None = None

    def targets(self, rows: datasets.Dataset | None, reader: Reader, seed: int, count: int) -> list[Target]:
        return [target for name, target in read_rows(self.path) if self.task in (None, name)][:count]


def read_rows(path: str) -> list[tuple[str, Target]]:
    """Read a file of targets, each with its ``task``, by default the file's name. Raises UserError with a wrong row's line."""
    found = []
    for place, row, controls in target_rows(path):
        for key in ("reference", "task"):
            if not isinstance(row.get(key), str | None):
                raise UserError(f"{place}: {key}: expected text, got {row[key]!r}")
        found.append((row.get("task") or Path(path).stem, Target(controls, row.get("reference"), place=place)))
    return found


@dataclass(frozen=True)
class TaskConfig(Settings):
    """A row of the table: the kind of targets, their number and the ``samples`` of each.

    Args:
        title: the name of the row; by default that of the file.
        corpus: the corpus the targets are drawn from; by default that of the model.
        split: of the corpus.
        annotator: checks samples, and labels held-out texts that have no labels; by default that of the corpus.
        seed: of the targets and the samples.
        sampling: settings that differ from the model's.
    """

    task: Task
    title: str = ""
    corpus: Corpus | None = None
    split: str = "test"
    annotator: Annotator | None = None
    targets: int = 200
    samples: int = 50
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expect("at least 1", "targets", "samples")
        self.expect("0 or more", "seed")


def read_tasks(path: str | Path, changes: Sequence[tuple[str, str]] = ()) -> list[TaskConfig]:
    """Read a task's YAML file, or a file of targets, which has a row for each ``task`` in it.

    ``changes`` are settings of tasks to change, dotted, such as ("annotator.folder", "tagger").

    Raises:
        UserError: it cannot be read, or a setting is wrong.
    """
    if not str(path).lower().endswith(TARGET_LINES):
        plain = read_value(str(path), read_text(path))
        if isinstance(plain, dict) and "controls" not in plain:
            config = build(TaskConfig, override(plain, changes, TaskConfig), str(path))
            return [config if config.title else replace(config, title=Path(path).stem)]
    names = [name for name, _ in read_rows(str(path))]
    plain = [
        {"task": {"name": "file", "path": str(path), "task": name}, "title": name, "targets": names.count(name), "samples": 10}
        for name in dict.fromkeys(names)
    ]
    return [build(TaskConfig, override(each, changes, TaskConfig), str(path)) for each in plain]
