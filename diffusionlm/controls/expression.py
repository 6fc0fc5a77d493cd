"""Reads a control from text: ``Attribute("food", "Japanese") & ~Words("cheap")``, ``food=Japanese``, ``my.module:Thing(3)``.

Read as a syntax tree, never evaluated: names of controls, plain values, ``&``, ``|``, ``~`` and ``2 *``. A stranger's
control is named by import path, and is imported.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.control import Control

_SHORT = re.compile(r"\s*([A-Za-z_][\w ]*?)\s*=\s*([^\"'()&|~=]+?)\s*")
_STRING_OR_PATH = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?=\s*\()""")
_STRANGER = "__stranger_{}"
COMPOUND = ("all", "any", "not", "weighted")  # written with operators
PLAIN: dict[str, tuple[type | UnionType, str]] = {  # fields of which a wrong value can be told apart before it does harm
    "str": (str, "text in quotes"),
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "Control": (Control, "a control"),
}


def read_controls(expressions: Iterable[str | Control] | str | Control) -> tuple[Control, ...]:
    """Return the controls of several expressions, or of one.

    Raises:
        UserError: as ``read_control``.
    """
    if isinstance(expressions, str | Control) or not isinstance(expressions, Iterable):
        return (read_control(expressions),)
    return tuple(read_control(expression) for expression in expressions)


def read_control(expression: str | Control) -> Control:
    """Return the control that ``expression`` describes.

    Raises:
        UserError: not an expression of controls; an unknown control, field or value.
    """
    if isinstance(expression, Control):
        return expression
    if not isinstance(expression, str):
        raise UserError(f"control: expected an expression such as food=Japanese or Length(20), got {expression!r}")
    if short := _SHORT.fullmatch(expression):
        return _short(*short.groups())
    paths: list[str] = []

    def hidden(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        paths.append(f"{match[2]}:{match[3]}")
        return _STRANGER.format(len(paths) - 1)

    try:
        tree = ast.parse(_STRING_OR_PATH.sub(hidden, expression.strip()), mode="eval").body
        return _control(tree, paths, expression)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        reason = 'a short form stands alone; here write Attribute("food", "Japanese")' if "=" in expression else error
        told = expression if len(expression) <= 100 else f"{expression[:100]} ..."
        raise UserError(
            f'control: {told!r} is not an expression such as food=Japanese or Length(20) & ~Words("cheap"): {reason}'
        ) from None


def read_targets(path: str | Path) -> list[tuple[Control, ...]]:
    """Read a file of targets: objects with ``controls``, a list of expressions (or one), as JSON lines or a YAML list.

    Raises:
        UserError: it cannot be read, or a row has no ``controls``; the sentence says where.
    """
    return [controls for _, _, controls in target_rows(path)]


def target_rows(path: str | Path) -> list[tuple[str, dict[str, Any], tuple[Control, ...]]]:
    """Read a file of targets; return each with its place, such as "targets.jsonl, line 3", its row and its controls.

    Raises:
        UserError: as ``read_targets``.
    """
    found = []
    for place, row in _file_rows(path):
        asked = row.get("controls") if isinstance(row, Mapping) else None
        if not asked or not isinstance(asked, str | list):
            raise UserError(f"{place}: expected an object with 'controls', a list of expressions, got {row!r}")
        try:
            found.append((place, dict(row), read_controls(asked)))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not found:
        raise UserError(f"{path}: there is no target in it")
    return found


def _file_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    place = str(path)
    try:
        text = Path(path).read_text()
        if not str(path).endswith(".jsonl"):
            rows = yaml.safe_load(text)
            yield from ((f"{path}, target {n}", row) for n, row in enumerate(rows if isinstance(rows, list) else [rows], 1))
            return
        for number, line in enumerate(text.splitlines(), 1):
            place = f"{path}, line {number}"
            if line.strip():
                yield place, json.loads(line)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{place}: cannot read these targets: {' '.join(str(error).split())}") from None


def _short(name: str, value: str) -> Control:
    """Read ``length=20``: a control's name in small letters, or else a field of the texts' attributes."""
    if name.lower() not in Control.members or name.lower() in COMPOUND:
        return _make(Control.find("attribute"), [name, value], {}, f"{name}={value}")
    try:
        plain = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        plain = value
    numbers = re.fullmatch(r"(\d+)\s*-\s*(\d+)", value)
    arguments = [int(numbers[1]), int(numbers[2])] if numbers else [plain]
    return _make(Control.find(name.lower()), arguments, {}, f"{name}={value}")


def _control(node: ast.expr, paths: list[str], whole: str) -> Control:
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _control(left, paths, whole) & _control(right, paths, whole)
        case ast.BinOp(left, ast.BitOr(), right):
            return _control(left, paths, whole) | _control(right, paths, whole)
        case ast.BinOp(ast.Constant(float() | int() as weight), ast.Mult(), right):
            return weight * _control(right, paths, whole)
        case ast.BinOp(left, ast.Mult(), ast.Constant(float() | int() as weight)):
            return weight * _control(left, paths, whole)
        case ast.BinOp(ast.UnaryOp(ast.USub(), ast.Constant(float() | int() as weight)), ast.Mult(), right):
            return -weight * _control(right, paths, whole)
        case ast.UnaryOp(ast.Invert(), operand):
            return ~_control(operand, paths, whole)
        case ast.Call(ast.Name(name), arguments, keywords):
            positional = [_value(a, paths, whole) for a in arguments]
            named = {k.arg: _value(k.value, paths, whole) for k in keywords if k.arg}
            return _make(_kind(name, paths), positional, named, whole)
        case ast.Name(name):
            raise UserError(f"control: {whole!r}: expected arguments in brackets after {name}")
    raise UserError(f"control: {whole!r}: {ast.unparse(node)} is no control{nearest(ast.unparse(node), _names())}")


def _value(node: ast.expr, paths: list[str], whole: str) -> object:
    if isinstance(node, ast.Call):
        return _control(node, paths, whole)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise UserError(f"control: {whole!r}: {ast.unparse(node)} is no plain value; put words in quotes") from None


def _names() -> dict[str, type[Control]]:
    return {kind.__name__: kind for kind in Control.kinds().values()}


def _kind(name: str, paths: list[str]) -> type[Control]:
    strangers = {_STRANGER.format(number): path for number, path in enumerate(paths)}
    if name in strangers:
        return Control.find(strangers[name])
    if name not in _names():
        raise UserError(f"control: no control is called {name!r}{nearest(name, _names())}")
    return _names()[name]


def _make(kind: type[Control], positional: list[object], named: dict[str, object], whole: str) -> Control:
    try:
        made = kind(*positional, **named)
        known: tuple[Field[Any], ...] = fields(made) if is_dataclass(made) else ()
        for each in known:
            kind_of, told = PLAIN.get(str(each.type), (object, ""))
            value = getattr(made, each.name)
            if not isinstance(value, kind_of) or (kind_of is int and isinstance(value, bool)):
                raise UserError(f"{each.name}: expected {told}, got {value!r}")
        return made
    except UserError as error:
        raise UserError(f"control: {whole!r}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        reason = re.sub(r"^\w*\.?__init__\(\) ", f"{kind.__name__} ", str(error))
        raise UserError(f"control: {whole!r}: {reason}") from None
