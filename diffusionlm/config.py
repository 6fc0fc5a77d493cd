"""Settings: plain data (YAML, overrides, saved models) to checked dataclasses, and back.

A *component* (schedule, sampler, corpus, ...) is a frozen dataclass whose fields are its hyperparameters. In plain data it is
its name (``sqrt``), or a mapping with its name and the settings that differ from the defaults (``{name: sqrt, T: 1000}``).
A user-defined component is named by its import path, ``my.module:Thing``; nothing has to be registered.

The type of a field decides how a value is read: text of the command line stays as it stands where the field is text, and YAML's
``010``, ``1:30``, ``no`` and dates are text, of which a field of numbers takes decimal numbers and a switch takes ``no``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar

import pydantic
import yaml
from pydantic_core import core_schema

from diffusionlm.library import LIBRARY
from diffusionlm.yaml_loader import Loader

T = TypeVar("T")


class UserError(ValueError):
    """A mistake of the user, in one sentence: where, what was expected, what was found."""


def nearest(word: str, options: Iterable[str], listed: bool = True) -> str:
    """End an error sentence: the valid word nearest to ``word``; if none is near, all valid words, unless not ``listed``."""
    known = sorted(options)
    if close := difflib.get_close_matches(word.lower(), [option.lower() for option in known], n=1):
        return f"; did you mean {next(option for option in known if option.lower() == close[0])!r}?"
    return f"; choose from {', '.join(known)}" if known and listed else ""


def nearest_setting(name: str, options: Iterable[str], listed: bool = True) -> str:
    """Do as ``nearest`` for a setting or an argument ``--name``, which may have had this name in format 1."""
    known = list(options)
    renamed = {old: new for names in RENAMED.values() for old, new in names.items()}
    new = renamed.get(_setting(name))
    found = next((option for option in known if new is not None and _setting(option) == new), None)
    return nearest(name, known, listed) if found is None else f"; it is now called {found!r}"


def _setting(argument: str) -> str:
    return argument.strip("-").replace("-", "_").rpartition(".")[2]


# Whether an import path may be imported. A saved model must not import code: there, a third-party component is found only
# where its module has been imported already.
may_import: ContextVar[bool] = ContextVar("may_import", default=True)


RANGES: dict[str, Callable[[float], bool]] = {  # what ``Settings.expect`` may expect, as its messages say it
    "at least 1": lambda value: 1 <= value < math.inf,
    "a finite number": math.isfinite,
    "0 or more": lambda value: 0 <= value < math.inf,
    "a positive number": lambda value: 0 < value < math.inf,
    "a number between 0 and 1": lambda value: 0 <= value <= 1,
    "a share between 0 and 1": lambda value: 0 <= value <= 1,
    "a share from 0 to below 1": lambda value: 0 <= value < 1,
}


class Settings:
    """Base of the groups of settings; unknown keys are refused, and so are ``true``, ``nan`` and ``inf`` as numbers."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(cls._checked, handler(source))

    @classmethod
    def _checked(cls, value: object) -> object:
        """Return ``value``, settings in plain form. Raises UserError for a truth value as a number: pydantic takes it for 1."""
        if not isinstance(value, Mapping):
            return value
        for name, kind in _types(cls).items():  # type: ignore[arg-type]  # a class can be hashed
            given, options = value.get(name), {*_leaves(kind)}
            for each in given if isinstance(given, list | tuple) else [given]:
                if isinstance(each, bool) and options & {int, float} and not options & {bool, Any}:
                    raise UserError(f"{name}: expected a number, got {str(each).lower()}")
        # An infinite number is refused, but for one that is the default of a user-defined component.
        kept = {k: v for k, v in value.items() if v not in (math.inf, -math.inf) or getattr(cls, k, None) != v}
        return kept | {k: merge(to_plain(old), kept[k]) for k, old in cls._changed(kept)}

    @classmethod
    def _changed(cls, value: Mapping[str, Any]) -> Iterator[tuple[str, Component]]:
        """Yield the default components of which ``value`` holds settings without a name, as dotted arguments give them."""
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            given = value.get(field.name)
            if isinstance(given, Mapping) and "name" not in given:
                made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                if isinstance(made, Component):
                    yield field.name, made

    def expect(self, expected: str, *names: str) -> None:
        """Raise UserError where a setting of ``names``, or one of several values of it, is not ``expected``; None passes.

        ``expected`` is a key of ``RANGES`` or "1 to 9".
        """
        holds = RANGES.get(expected)
        if holds is None:
            low, high = map(float, expected.split(" to "))
            holds = lambda value: low <= value <= high  # noqa: E731
        for name in names:
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else [given]:
                if value is not None and not holds(value):
                    raise UserError(f"{name}: expected {expected}, got {value}")


class Component(Settings):
    """Base of every family of components; a direct subclass is a family, its named subclasses are the members."""

    family: ClassVar[str] = "component"
    name: ClassVar[str] = ""
    members: ClassVar[dict[str, type[Component] | str]] = {}  # name -> class, or import path from ``LIBRARY``
    shared: ClassVar[Mapping[str, Any]] = {}  # fields that the owner fills, not in plain data -> what stands there until then

    def __init_subclass__(
        cls, *, family: str | None = None, name: str | None = None, shared: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.shared = cls.shared if shared is None else shared
        if family is not None:
            cls.family, cls.members = family, dict(LIBRARY.get(family, {}))
        cls.name = name or ""
        if name is not None:
            cls.members[name] = cls

    @classmethod
    def find(cls, name: str) -> type[Self]:
        """Return the member called ``name``, or the class at the import path ``module:Class``.

        Raises:
            UserError: no such member or module, or a class of another family.
        """
        module, colon, attribute = name.partition(":")
        if not colon:
            if name not in cls.members:
                raise UserError(f"no {cls.family} is called {name!r}{nearest(name, cls.members)}")
            member = cls.members[name]
            if isinstance(member, str):
                module, _, attribute = member.partition(":")
                member = getattr(importlib.import_module(module), attribute)
            return typing.cast("type[Self]", member)
        try:
            if not may_import.get() and module not in sys.modules:
                raise UserError(
                    f"{name!r} is code from outside the library: import {module} first (--import {module}) if you trust it"
                )
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot import the {cls.family} {name!r}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise UserError(f"{name!r} is no {cls.family}: expected a subclass of {cls.__module__}:{cls.__name__}")
        return found

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Return the members of the family by name."""
        return {name: cls.find(name) for name in cls.members}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        if dataclasses.is_dataclass(cls):  # A member itself: its own fields, checked like any dataclass.
            return core_schema.no_info_before_validator_function(cls._without_name, handler(source))
        return core_schema.no_info_plain_validator_function(cls._from_plain)

    @classmethod
    def _without_name(cls, value: object) -> object:
        if isinstance(value, Mapping) and value.get("name") == plain_name(cls):
            value = {k: v for k, v in value.items() if k != "name"}
        return cls._checked(value)

    @classmethod
    def _from_plain(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        kind, settings = cls.described(value)
        if wrong := next(iter(kind.shared.keys() & settings.keys()), None):
            raise UserError(f"{wrong}: there is no such setting; a {cls.family} has the {wrong} of its owner")
        return build(kind, {**settings, **kind.shared})

    @classmethod
    def described(cls, plain: object) -> tuple[type[Self], dict[str, Any]]:
        """Return the class and the settings of a component in plain form: its name, or a mapping. Raises UserError."""
        if isinstance(plain, str):
            plain = {"name": plain}
        if not isinstance(plain, Mapping) or not isinstance(plain.get("name"), str):
            raise UserError(f"expected the name of a {cls.family}, or a mapping with its name, got {plain!r}")
        return cls.find(plain["name"]), {k: v for k, v in plain.items() if k != "name"}


def build(kind: type[T], plain: object, where: str = "") -> T:
    """Return the dataclass ``kind`` with the values of ``plain`` (numbers, strings, lists, mappings), checked.

    Raises:
        UserError: an unknown key, a wrong type, a missing or impossible value; the message starts with its place.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(plain)
    except pydantic.ValidationError as error:
        raise UserError(_sentence(kind, error, where)) from None


def build_untrusted(kind: type[T], plain: object, where: str = "") -> T:
    """Do as ``build`` for a saved model, and import no module that is not imported yet."""
    token = may_import.set(False)
    try:
        return build(kind, plain, where)
    finally:
        may_import.reset(token)


def plain_name(kind: type[Component]) -> str:
    """Return a component's name in plain data: its name, or its import path."""
    return kind.name or f"{kind.__module__}:{kind.__name__}"


def to_plain(value: Any) -> Any:
    """Return a dataclass as mappings, lists, strings and numbers; the inverse of ``build``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shared = getattr(value, "shared", {})
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in shared}
        if isinstance(value, Component):
            fields = {"name": plain_name(type(value)), **fields}
        return fields
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, list | tuple) else value


# Settings that have another name in format 1 (version 0.1), old name -> new name, by their place in a run's config.
RENAMED = {
    "sampling": {"corrections": "sweeps", "correction_odds": "sweep_odds"},
    "sampling.guidance": {
        "tilting": "logit_scale",
        "through": "denoiser_scale",
        "constraints": "constraint_scale",
        "early": "early_multiplier",
        "largest": "max_logit_step",
    },
    "classifier": {"frames": "templates"},
}
RENAMED_VALUES = {"model.reads": {"belief": "prediction"}, "classifier.settings.reads": {"belief": "prediction"}}
FORMAT_VERSION = 2  # of model folders and of runs' configs


def upgraded(plain: Any, place: str = "") -> Any:
    """Return settings of format 1 under their names in this format; ``place`` is their dotted place in ``RENAMED``."""
    if not isinstance(plain, Mapping):
        return RENAMED_VALUES.get(place, {}).get(plain, plain) if isinstance(plain, str) else plain
    names = RENAMED.get(place, {})
    renamed = {names.get(key, key): value for key, value in plain.items()}
    return {key: upgraded(value, f"{place}.{key}".lstrip(".")) for key, value in renamed.items()}


def read_value(where: str, text: str) -> Any:
    """Parse a YAML value. Raises UserError where it is not valid YAML, or a key is given twice."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def read_setting(where: str, text: str, kind: Any) -> Any:
    """Return the value of a setting of type ``kind`` from the command line: text as it stands for text, YAML for others.

    Text in quotes is read without them; ``null`` is None where the type allows that.
    """
    options = {*_leaves(kind)}
    component = any(isinstance(option, type) and issubclass(option, Component) for option in options)
    if NoneType in options and text.strip() in ("null", "~", ""):
        return None
    quoted = len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]
    is_text = str in _union(kind) or component or any(typing.get_origin(option) is Literal for option in options)
    return text if is_text and not quoted and not (component and text.lstrip().startswith("{")) else read_value(where, text)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping. Raises UserError where it is not valid YAML, or not a mapping."""
    plain = read_value(where, text)
    if not isinstance(plain, dict | None):
        raise UserError(f"{where}: expected 'key: value' lines, got {type(plain).__name__}")
    return plain or {}


def merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` changed by ``change``, mapping by mapping; a component of another name replaces the old one."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"name": old}
        if isinstance(old, dict) and isinstance(value, Mapping) and value.get("name", old.get("name")) == old.get("name"):
            value = merge(old, value)
        merged[key] = value
    return merged


def override(plain: dict[str, Any], assignments: Iterable[tuple[str, str]], kind: Any = Any) -> dict[str, Any]:
    """Apply dotted overrides such as ``("training.steps", "100")``, read as the types of the settings ``kind`` say.

    A group is applied before its settings, and a component's name before its hyperparameters, in any order of arguments.
    """
    for dotted, value in sorted(assignments, key=lambda each: (each[0].count("."), not each[0].endswith(".name"))):
        keys = dotted.split(".")
        change: Any = read_setting(dotted, value, _type_of(kind, plain, keys))
        for key in reversed(keys):
            change = {key: change}
        plain = merge(plain, change)
    return plain


def _type_of(kind: Any, plain: object, keys: Iterable[str]) -> Any:
    """Return the type of the setting at the place ``keys`` in settings ``kind`` of values ``plain``; Any if it is unknown."""
    for key in keys:
        classes = [option for option in _union(kind) if isinstance(option, type)]
        for family in classes:
            if issubclass(family, Component) and not dataclasses.is_dataclass(family):
                try:
                    classes = [family.described(plain)[0]]
                except UserError:  # it is reported when the settings are built
                    return Any
        kind = next((types[key] for option in classes if key in (types := _types(option))), str if key == "name" else Any)
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return kind


@cache
def _types(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields; nothing for another class, or where they cannot be resolved."""
    if not dataclasses.is_dataclass(kind):
        return {}
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError):  # names of a function, or imported for type checkers alone
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _union(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)


def _leaves(kind: Any) -> Iterator[Any]:
    """Yield the types in a union, and those of the members of tuples and lists."""
    for option in _union(kind):
        members = typing.get_args(option) if typing.get_origin(option) in (tuple, list) else ()
        yield option
        for member in members:
            yield from _leaves(member)


def _sentence(kind: type, error: pydantic.ValidationError, where: str) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    spot = ".".join(([where] if where else []) + place)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _type_at(kind, place[:-1])
        fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
        known = [f.name for f in fields if f.name not in getattr(owner, "shared", {})]
        return f"{spot}: there is no such setting{nearest_setting(place[-1], known)}"
    if first["type"] == "missing":
        return f"{spot}: this setting is needed and has no default"
    if first["type"] == "value_error":
        cause = str(first["ctx"]["error"])
        inner, colon, rest = cause.partition(": ")
        nested = colon and " " not in inner and isinstance(first["ctx"]["error"], UserError)
        return f"{spot}.{inner}: {rest}" if nested and spot else f"{spot}: {cause}" if spot else cause
    message = first["msg"].replace("Input should be", "expected")
    quote = first["type"] == "string_type" and isinstance(first["input"], int | float)
    advice = "; put it in quotes" if quote else ""
    return f"{spot or 'configuration'}: {message[0].lower()}{message[1:]}, got {first['input']!r}{advice}"


def _type_at(kind: Any, place: list[str]) -> Any:
    for part in place:
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
        options = [a for a in typing.get_args(kind) if dataclasses.is_dataclass(a)]
        kind = options[0] if options else kind
    return kind
