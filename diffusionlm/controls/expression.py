"""Read controls from text: ``Attribute("food", "Japanese") & ~Words("cheap")``, ``food=Japanese``, ``my.module:Thing(3)``.

The text is parsed as a Python syntax tree and never evaluated: names of controls, plain values, ``&``, ``|``, ``~``, ``2 *``. A
user-defined control is named by its import path, and is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any

from diffusionlm.config import UserError, nearest, read_value
from diffusionlm.controls.control import Combination, Control
from diffusionlm.data.reading import json_rows, lines_of, nfc, read_text, wrong_character

TARGET_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")  # files with a target on each line; others are YAML
_SHORT = re.compile(r"\s*([^\W\d][\w ]*?)\s*=\s*([^\"'()&|~=]+?)\s*")
_STRING_OR_PATH = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?=\s*\()""")
_COLON = "._colon_."  # what stands for the colon of an import path, so that Python can parse it
PLAIN: dict[str, tuple[type | UnionType, str]] = {  # types of fields that are checked before the control is used
    "str": (str, "text in quotes"),
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "Control": (Control, "a control"),
}


def read_controls(expressions: Iterable[str | Control] | str | Control) -> tuple[Control, ...]:
    """Return the controls of several expressions, or of one. Raises UserError as ``read_control``."""
    if isinstance(expressions, str | Control) or not isinstance(expressions, Iterable):
        return (read_control(expressions),)
    return tuple(map(read_control, expressions))


def read_control(expression: str | Control) -> Control:
    """Return the control of an ``expression``. Raises UserError for an unknown control, field or value, or another text."""
    if isinstance(expression, Control):
        return expression
    if not isinstance(expression, str):
        raise UserError(f"control: expected an expression such as food=Japanese or Length(20), got {expression!r}")
    if wrong := wrong_character(expression):
        raise UserError(f"control: {wrong}")
    text: str = nfc(expression)
    if short := _SHORT.fullmatch(text):
        return _short(*short.groups())
    try:
        return _Parser(text).parse()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        reason = 'a short form stands alone; here write Attribute("food", "Japanese")' if "=" in text else error
        shown = text if len(text) <= 100 else f"{text[:100]} ..."
        raise UserError(
            f'control: {shown!r} is not an expression such as food=Japanese or Length(20) & ~Words("cheap"): {reason}'
        ) from None


def target_rows(path: str | Path) -> list[tuple[str, dict[str, Any], tuple[Control, ...]]]:
    """Read a file of targets: objects with ``controls``, a list of expressions (or one), as JSON lines or a YAML list.

    Returns each with its place, such as "targets.jsonl, line 3", its row and its controls. Raises UserError with the place
    where the file cannot be read, or a row has no ``controls``.
    """
    found = []
    for place, row in _file_rows(path):
        expressions = row.get("controls") if isinstance(row, Mapping) else None
        if not expressions or not isinstance(expressions, str | list):
            raise UserError(f"{place}: expected an object with 'controls', a list of expressions, got {str(row)[:60]}")
        if unknown := sorted(map(str, row.keys() - {"controls", "reference", "task"})):
            raise UserError(f"{place}: there is no such key {unknown[0]!r}; expected controls, reference, task")
        if wrong := next(filter(None, (wrong_character(value) for value in row.values() if isinstance(value, str))), ""):
            raise UserError(f"{place}: {wrong}")
        try:
            found.append((place, dict(row), read_controls(expressions)))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not found:
        raise UserError(f"{path}: there is no target in it")
    return found


def _file_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    text, name = read_text(path), str(path)
    if name.lower().endswith(TARGET_LINES):
        yield from ((f"{name}, line {number}", row) for number, row in json_rows(lines_of(text), name))
        return
    rows = read_value(name, text)
    yield from ((f"{name}, target {n}", row) for n, row in enumerate(rows if isinstance(rows, list) else [rows], 1))


def _short(name: str, value: str) -> Control:
    """Read ``length=20``: a control's name in small letters, or else an attribute of the corpus."""
    kind = name.lower()
    arguments: list[object] = [value]
    if kind not in Control.members or issubclass(Control.find(kind), Combination):
        kind, arguments = "attribute", [name, value]
    elif numbers := re.fullmatch(r"(\d+)\s*-\s*(\d+)", value):
        arguments = [int(number) for number in numbers.groups()]
    elif not _takes_text(Control.find(kind)):
        with suppress(ValueError, SyntaxError):
            arguments = [ast.literal_eval(value)]
    return _make(Control.find(kind), arguments, {}, f"{name}={value}")


def _takes_text(kind: type[Control]) -> bool:
    """Return whether the first field of a control is text, which ``prefix=2024`` then means."""
    return is_dataclass(kind) and "str" in str(next(iter(fields(kind))).type)


class _Parser:
    """Turns the syntax tree of an expression into controls."""

    def __init__(self, text: str) -> None:
        self.text = text

    def parse(self) -> Control:
        strings = [found for found in _STRING_OR_PATH.finditer(self.text) if found[1]]
        for one, other in pairwise(strings):  # Python joins them to one string
            if not self.text[one.end() : other.start()].strip():
                raise UserError(f"control: {self.text!r}: expected a comma between {one[1]} and {other[1]}")
        text = _STRING_OR_PATH.sub(lambda found: found[1] or f"{found[2]}{_COLON}{found[3]}", self.text.strip())
        return self._control(ast.parse(text, mode="eval").body)

    def _control(self, node: ast.expr) -> Control:
        match node:
            case ast.BinOp(left, ast.BitAnd(), right):
                return self._control(left) & self._control(right)
            case ast.BinOp(left, ast.BitOr(), right):
                return self._control(left) | self._control(right)
            case ast.BinOp(ast.Constant(float() | int() as weight), ast.Mult(), control):
                return weight * self._control(control)
            case ast.BinOp(control, ast.Mult(), ast.Constant(float() | int() as weight)):
                return weight * self._control(control)
            case ast.BinOp(ast.UnaryOp(ast.USub(), ast.Constant(float() | int() as weight)), ast.Mult(), control):
                return -weight * self._control(control)
            case ast.UnaryOp(ast.Invert(), control):
                return ~self._control(control)
            case ast.Call(path, arguments, keywords) if isinstance(path, ast.Name) or _COLON in ast.unparse(path):
                positional = [self._value(argument) for argument in arguments]
                named: dict[str, object] = {}
                for keyword in keywords:
                    if keyword.arg is None or keyword.arg in named:
                        problem = "is no argument" if keyword.arg is None else "is given twice"
                        raise UserError(f"control: {self.text!r}: {ast.unparse(keyword)} {problem}")
                    named[keyword.arg] = self._value(keyword.value)
                return _make(_class(ast.unparse(path).replace(_COLON, ":")), positional, named, self.text)
            case ast.Name(name):
                raise UserError(f"control: {self.text!r}: expected arguments in brackets after {name}")
        raise UserError(f"control: {self.text!r}: {ast.unparse(node)} is no control{nearest(ast.unparse(node), _classes())}")

    def _value(self, node: ast.expr) -> object:
        if isinstance(node, ast.Call):
            return self._control(node)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            raise UserError(f"control: {self.text!r}: {ast.unparse(node)} is no plain value; put words in quotes") from None


def _class(name: str) -> type[Control]:
    if ":" in name:
        return Control.find(name)
    if name not in _classes():
        raise UserError(f"control: no control is called {name!r}{nearest(name, _classes())}")
    return _classes()[name]


def _classes() -> dict[str, type[Control]]:
    return {kind.__name__: kind for kind in Control.kinds().values()}


def _make(kind: type[Control], positional: list[object], named: dict[str, object], text: str) -> Control:
    try:
        made = kind(*positional, **named)
        known: tuple[Field[Any], ...] = fields(made) if is_dataclass(made) else ()
        for field in known:
            type_, expected = PLAIN.get(str(field.type), (object, ""))
            value = getattr(made, field.name)
            if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
                raise UserError(f"{field.name}: expected {expected}, got {value!r}")
        return made
    except UserError as error:
        raise UserError(f"control: {text!r}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        reason = re.sub(r"^\w*\.?__init__\(\) ", f"{kind.__name__} ", str(error))
        raise UserError(f"control: {text!r}: {reason}") from None
