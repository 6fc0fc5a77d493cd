"""What a visitor of the demo asks for, within bounds: from the fields of the form to controls and settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from diffusionlm.config import UserError, may_import
from diffusionlm.controls import Control, Infill, Length, Not, Reward, Span, Tree, Words, read_controls
from diffusionlm.data.tokenizers import split_words
from diffusionlm.demo.models import DemoModel

MOST_TEXTS, MOST_EVALUATIONS, MOST_TRIES, MOST_CONTROLS, MOST_CHARACTERS = 16, 256, 10, 16, 1000
LARGEST_SEED = 2**31 - 1
BOUNDS: dict[str, tuple[float, float]] = {  # of the numbers of a request
    "count": (1, MOST_TEXTS),
    "seed": (0, LARGEST_SEED),
    "evaluations": (1, MOST_EVALUATIONS),
    "temperature": (0.1, 3),
    "strength": (0, 10),
    "length": (1, 10_000),
    "tries": (1, MOST_TRIES),
    "level": (0, 1),
}
WHOLE = ("count", "seed", "evaluations", "length", "tries")


@dataclass(frozen=True)
class DemoRequest:
    """Texts to sample; None stands for the model's own setting.

    Args:
        count: the number of texts.
        controls: expressions, as ``--control`` takes them.
        seed: of the noise and the lengths.
        evaluations: network evaluations per text.
        temperature: of the token posterior.
        strength: of gradient guidance.
        length: tokens per text, of a model without controls.
        tries: attempts per text until all its controls hold.
        source: the source text of a model with such a condition.
        condition: values of its other conditions by name, as ``--condition`` takes them.
        text: a text to edit; without one texts are generated.
        level: the share of the noise that an edit adds.

    Raises:
        UserError: a value out of ``BOUNDS``, too many controls, too long a text.
    """

    count: int = 4
    controls: tuple[str, ...] = ()
    seed: int = 0
    evaluations: int | None = None
    temperature: float | None = None
    strength: float | None = None
    length: int | None = None
    tries: int = 1
    source: str | None = None
    condition: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    level: float = 0.5

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            check_number(name, getattr(self, name), low, high, name in WHOLE)
        if len(self.controls) > MOST_CONTROLS:
            raise UserError(f"controls: expected at most {MOST_CONTROLS} in the demo, got {len(self.controls)}")
        for name in ("source", "text"):
            check_text(name, getattr(self, name))
        for value in (*self.controls, *self.condition.values()):
            check_text("controls" if value in self.controls else "condition", value)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the request changes, as arguments of a pipeline's call."""
        given = {name: getattr(self, name) for name in ("seed", "evaluations", "temperature", "length")}
        found = {name: value for name, value in given.items() if value is not None}
        return found if self.strength is None else {**found, "guidance": {"strength": self.strength}}

    @property
    def conditions(self) -> list[str]:
        """The values of the model's condition in the form NAME=VALUE; of an edit also the source."""
        source = {"source": self.source} if self.text is not None and self.source else {}
        return [f"{name}={value}" for name, value in {**self.condition, **source}.items()]


def check_number(name: str, value: object, low: float, high: float, whole: bool) -> None:
    """Raise UserError for a ``value`` that is no number from ``low`` to ``high``; None passes."""
    if value is None:
        return
    kind = "a whole number" if whole else "a number"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not (math.isfinite(value) and low <= value <= high):  # type: ignore[arg-type, operator]
        raise UserError(f"{name}: expected {kind} from {low:g} to {high:.10g} in the demo, got {value!r}")


def check_text(name: str, value: object) -> None:
    """Raise UserError for a ``value`` that is no text of one line and of at most ``MOST_CHARACTERS``; None passes."""
    if value is None:
        return
    if not isinstance(value, str) or len(value.splitlines()) > 1:
        raise UserError(f"{name}: expected a text of one line, got {value!r}"[:200])
    if len(value) > MOST_CHARACTERS:
        raise UserError(f"{name}: expected at most {MOST_CHARACTERS:,} characters in the demo, got {len(value):,}")


def read_safely(expressions: Sequence[str]) -> tuple[Control, ...]:
    """Return the controls of ``expressions`` of a visitor, who can name neither code nor folders of this machine.

    Raises:
        UserError: as ``read_controls``; a control with a function, a module that is not imported, or a path.
    """
    token = may_import.set(False)
    try:
        controls = read_controls(expressions)
    finally:
        may_import.reset(token)
    for control in (part for each in controls for part in parts_of(each)):
        if isinstance(control, Reward):
            raise UserError("controls: the demo calls no functions; use Reward in Python or on the command line")
        named = [f.name for f in fields(control) if f.name == "classifier"]  # type: ignore[arg-type]
        for name in [*named, *(["tags"] if isinstance(control, Span | Tree) else [])]:
            if not re.fullmatch(r"\w[\w.-]*", given := getattr(control, name)):  # neither a path nor module:attribute
                raise UserError(f"{name}: expected the name of one of the model's classifiers in the demo, got {given!r}")
    return controls


def parts_of(control: Control) -> Iterator[Control]:
    """Yield a control and the controls that it combines."""
    yield control
    for each in vars(control).get("controls") or filter(None, [vars(control).get("control")]):
        yield from parts_of(each)


def phrases(text: str | None) -> list[str]:
    """Return the words and phrases of a field of the form, which commas separate."""
    return [part for each in (text or "").split(",") if (part := each.strip())]


def form_controls(
    model: DemoModel, chosen: Sequence[str | None] = (), shortest: int | None = None, longest: int | None = None,
    include: str | None = "", avoid: str | None = "", expressions: str | None = "", template: str | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Return the controls of the form, one for each of its entries, as expressions.

    Args:
        model: the model that the form is made for.
        chosen: a value of each of its ``fields``, or none.
        shortest: the fewest tokens of a text; ``longest`` the most.
        include: words and phrases that the text contains, with commas between them; ``avoid`` those that it does not.
        expressions: more controls, one a line.
        template: a text with gaps to fill.

    Raises:
        UserError: an impossible value.
    """
    found: list[Control] = [] if template is None else [Infill(template)]
    found += [each.control(value) for each, value in zip(model.fields, chosen, strict=False) if value]
    if shortest is not None or longest is not None:
        for number in (shortest, longest):
            check_number("length", number, 1, model.longest, True)
        low, high = shortest or 1, longest or model.longest
        found.append(Length(low) if low == high else Length(low, high))
    found += [Words(words) for words in phrases(include)] + [Not(Words(words)) for words in phrases(avoid)]
    lines = [line.strip() for line in (expressions or "").splitlines() if line.strip()]
    return (*map(str, found), *lines)


def gapped(text: str, removed: Sequence[int], same_size: bool = False) -> str:
    """Return the template of ``text`` whose words ``removed``, by number, are gaps; adjacent ones are one gap.

    A gap is one word or more, with ``same_size`` as many words as were removed.

    Raises:
        UserError: no word is removed, or one that the text does not have.
    """
    words = split_words(text)
    if not removed or not {*removed} <= {*range(len(words))}:
        raise UserError(f"words: expected words of the text to remove, of {len(words)}, got {[*removed] or 'none'}")
    parts: list[str] = []
    size = 0
    for number in range(len(words) + 1):
        if number in removed:
            size += 1
            continue
        parts += [f"{{{size}}}" if same_size else "{}"] * (size > 0)
        size = 0
        parts += [word.replace("{", "{{").replace("}", "}}") for word in words[number : number + 1]]
    return " ".join(parts)
