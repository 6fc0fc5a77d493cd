"""What is asked in an evaluation of control: targets drawn from held-out texts, so that each can be met by some text.

A *target* is a list of controls, with the real text that it came from as its reference. A *task* draws targets of one kind;
a task's file in ``configs/control`` says which task, from which texts, how many, and how they are sampled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets  # type: ignore[import-untyped]
import yaml

from diffusionlm.config import Component, Settings, UserError, build, override, read_yaml
from diffusionlm.controls import Attribute, Control, Infill, target_rows
from diffusionlm.data.annotators import Annotator, CorpusRow, Reader
from diffusionlm.data.corpora import Corpus


@dataclass(frozen=True)
class Gap:
    """A text in three parts, of which the middle one is hidden; blanks around it stand for nothing."""

    left: str
    hidden: str
    right: str

    def filled(self, words: str) -> str:
        """Return the text with ``words`` in the gap."""
        return " ".join(filter(None, [self.left, words, self.right]))


@dataclass(frozen=True)
class Target:
    """What is asked of some texts, the real text that is so, where there is one, and where the target comes from."""

    controls: tuple[Control, ...]
    reference: str | None = None
    gap: Gap | None = None
    place: str = ""


class Task(Component, family="task"):
    """Base of the kinds of targets."""

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Return a target that the text of ``row`` meets; None where there is nothing of the kind to ask."""
        raise NotImplementedError

    def wants(self, target: Target, found: Sequence[Target]) -> bool:
        """Tell whether a target is one more, beside those ``found`` before it."""
        return True

    def targets(self, rows: datasets.Dataset | None, reader: Reader, seed: int, count: int) -> list[Target]:
        """Return the first ``count`` targets of texts in an order, and with choices, that ``seed`` settles.

        Raises:
            UserError: there are fewer.
        """
        assert rows is not None
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        found: list[Target] = []
        for number in order:
            if len(found) == count:
                break
            target = self.target(rows[number], random.Random(f"{seed} {number}"), reader)
            if target and self.wants(target, found):
                found.append(target)
        if len(found) < count:
            raise UserError(f"targets: expected at most {len(found)}, as many as these texts give, got {count}")
        return found


@dataclass(frozen=True)
class AttributeTargets(Task, name="attributes"):
    """``count`` of the attributes that a text states (semantic content); of ``fields`` only, where these are given.

    ``distinct`` asks for nothing twice, so that a value counts once however often it is stated.
    """

    fields: tuple[str, ...] = ()
    count: int = 1
    distinct: bool = False

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Choose among what is stated."""
        stated = {f: v for f, v in sorted(reader.attributes(row).items()) if f in self.fields or not self.fields}
        if len(stated) < self.count:
            return None
        chosen = draw.sample(list(stated), self.count)
        return Target(tuple(Attribute(name, stated[name]) for name in chosen), row["text"])

    def wants(self, target: Target, found: Sequence[Target]) -> bool:
        """Pass over what was asked for already, where that is wanted."""
        return not self.distinct or all(target.controls != other.controls for other in found)


@dataclass(frozen=True)
class ControlTargets(Task, name="control"):
    """Targets of any control that has ``target_from``: ``control`` is its name, or the import path of a user-defined one."""

    control: str

    def __post_init__(self) -> None:
        """Check that the control exists and draws targets."""
        if getattr(Control.find(self.control).target_from, "__func__", None) is vars(Control)["target_from"].__func__:
            raise UserError(f"control: {self.control!r} has no target_from, so no targets can be drawn from a text")

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Draw a control from the text."""
        control = Control.find(self.control).target_from(row, draw, reader)
        return None if control is None else Target((control,), row["text"])


class _OneControl(Task):
    """Base of the tasks named after their control."""

    control: ClassVar[str]

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Draw a control from the text."""
        return ControlTargets(self.control).target(row, draw, reader)


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
    """A text with a gap in its middle; none with words that the model cannot write.

    Args:
        hidden: the fewest and the most words that the gap hides, marks with the word that they stand at.
        context: words that are left on each side, at least.
        told: whether it is told how many tokens are hidden; if not, the gap is of any length to whoever fills it.
    """

    hidden: tuple[int, int] = (2, 6)
    context: int = 3
    told: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.hidden[0] <= self.hidden[1]:
            raise UserError(f"hidden: expected 1 or more, the fewest words before the most, got {list(self.hidden)}")
        if self.context < 0:
            raise UserError(f"context: expected 0 or more, got {self.context}")

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Hide words; how many, and where, is drawn."""
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
    """What all of ``tasks`` ask, of one text."""

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        """Check that there are tasks."""
        if not self.tasks:
            raise UserError("tasks: expected at least one")

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target | None:
        """Ask each."""
        parts = [task.target(row, draw, reader) for task in self.tasks]
        if not all(parts):
            return None
        gap = next((part.gap for part in parts if part and part.gap), None)
        return Target(tuple(control for part in parts if part for control in part.controls), row["text"], gap)


@dataclass(frozen=True)
class FileTargets(Task, name="file"):
    """The targets of a .jsonl or .yaml file: rows with ``controls``, and perhaps ``reference`` and ``task``.

    Only those of ``task`` are taken, where it is given.
    """

    path: str
    task: str | None = None

    def targets(self, rows: datasets.Dataset | None, reader: Reader, seed: int, count: int) -> list[Target]:
        """Read the first ``count``, or all that there are."""
        return [target for name, target in read_rows(self.path) if self.task in (None, name)][:count]


def read_rows(path: str) -> list[tuple[str, Target]]:
    """Read a file of targets, each with its ``task``, by default the file's name.

    Raises:
        UserError: it cannot be read, or a row is no target, with its line.
    """
    found = []
    for place, row, controls in target_rows(path):
        for key in ("reference", "task"):
            if not isinstance(row.get(key), str | None):
                raise UserError(f"{place}: {key}: expected text, got {row[key]!r}")
        if unknown := sorted(row.keys() - {"controls", "reference", "task"}):
            raise UserError(f"{place}: there is no such key {unknown[0]!r}; expected controls, reference, task")
        found.append((row.get("task") or Path(path).stem, Target(controls, row.get("reference"), place=place)))
    return found


@dataclass(frozen=True)
class TaskConfig(Settings):
    """A row of a table: which targets, and how texts are written for them.

    Args:
        task: the kind of targets.
        title: what the row is called; by default the file's name.
        corpus: whose texts the targets come from; by default the model's own.
        split: of the corpus.
        annotator: what reads finished texts, and held-out ones that come without labels; by default the grammar for the
            embedded corpus, and nothing but words for others.
        targets: how many.
        samples: texts for each of them.
        seed: of the targets and of the texts.
        sampling: settings that differ from the model's own.
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
        """Check the numbers."""
        for name, least in (("targets", 1), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")


def read_tasks(path: str | Path, changes: Sequence[tuple[str, str]] = ()) -> list[TaskConfig]:
    """Read a task's YAML file, or a file of targets, which gives a row for each ``task`` that it names.

    ``changes`` are settings of tasks to change, dotted, such as ("annotator.folder", "tagger").

    Raises:
        UserError: it cannot be read, or says something impossible.
    """
    if not str(path).endswith(".jsonl"):
        try:
            text = Path(path).read_text()
            plain = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot read this task: {' '.join(str(error).split())}") from None
        if isinstance(plain, dict) and "controls" not in plain:
            config = build(TaskConfig, override(read_yaml(text, str(path)), changes), str(path))
            return [config if config.title else replace(config, title=Path(path).stem)]
    names = [name for name, _ in read_rows(str(path))]
    plain = [
        {"task": {"name": "file", "path": str(path), "task": name}, "title": name, "targets": names.count(name), "samples": 10}
        for name in dict.fromkeys(names)
    ]
    return [build(TaskConfig, override(each, changes), str(path)) for each in plain]
