"""The reference of settings, made from the dataclasses that hold them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from diffusionlm.config import Component, Settings, to_plain
from diffusionlm.verbs.showing import FAMILIES

GROUPS = {  # title -> what it configures, as an import path
    "Run": "diffusionlm.training.run:RunConfig",
    "data": "diffusionlm.data.batches:DataConfig",
    "training": "diffusionlm.training.trainer:TrainingConfig",
    "sampling": "diffusionlm.pipelines.base:SamplingConfig",
    "sampling.particles": "diffusionlm.pipelines.particles:Particles",
    "extend_vocabulary": "diffusionlm.training.extending:VocabularyExtension",
}
ENTRY = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def markdown() -> str:
    """Return a section for each group of settings, and one for each family of components with its members."""
    parts = ["## Groups of settings"]
    for title, path in GROUPS.items():
        kind = load(path)
        parts += [f"### {title if title == 'Run' else f'`{title}`'}", prose(kind), table(kind)]
    for family, path in FAMILIES.items():
        members = load(path).kinds()
        first = inspect.cleandoc(load(path).__doc__ or "").splitlines()[0]
        parts += [f"## {family.capitalize()}", f"{first} A component of your own subclasses `{path}`."]
        parts += [each for name, kind in members.items() for each in (f"### `{name}`", prose(kind), table(kind))]
    return "\n\n".join(filter(None, parts))


def prose(kind: type) -> str:
    """Return the docstring of ``kind`` without its list of settings, as Markdown."""
    text = re.split(r"^(?:Args|Raises|Attributes):$", inspect.getdoc(kind) or "", maxsplit=1, flags=re.MULTILINE)[0]
    return text.strip().replace("``", "`")


def table(kind: Any) -> str:
    """Return a table of the settings of ``kind``: name, type, default, meaning; "" where it has none."""
    kept = [field for field in dataclasses.fields(kind) if field.name in names(kind)]
    if not kept:
        return ""
    types, meanings = get_type_hints(kind), described(kind)
    titles = ["setting", "type", "default", "meaning"]
    rows = [
        [f"`{field.name}`", _type(field, types[field.name]), _default(field), _cell(meanings.get(field.name, ""))]
        for field in kept
    ]
    shown = len(titles) if meanings.keys() & {field.name for field in kept} else len(titles) - 1
    return "\n".join(f"| {' | '.join(row[:shown])} |" for row in [titles, ["---"] * len(titles), *rows])


def names(kind: Any) -> list[str]:
    """Return the names of the settings of ``kind``."""
    return [field.name for field in dataclasses.fields(kind) if field.name not in getattr(kind, "shared", {})]


def described(kind: type) -> dict[str, str]:
    """Return what the docstrings of ``kind`` and its bases say of each setting under ``Args``."""
    found: dict[str, str] = {}
    for each in kind.__mro__:
        _, mark, listed = inspect.cleandoc(each.__dict__.get("__doc__") or "").partition("Args:\n")
        for name, text in ENTRY.findall(re.split(r"^\S", listed, maxsplit=1, flags=re.MULTILINE)[0] if mark else ""):
            found.setdefault(name, " ".join(text.split()))
    return found


def _cell(text: str) -> str:
    return (text[:1].upper() + text[1:]).replace("``", "`").replace("|", r"\|")


def _type(field: dataclasses.Field[Any], kind: Any) -> str:
    """Return a field's type as text: a family or a group of settings as a link to its section."""
    options = [each for each in (get_args(kind) or [kind]) if isinstance(each, type)]
    if link := next((f"[{title}](#{_anchor(title)})" for each in options if (title := _section(each))), None):
        return link
    choices = [f"`{value}`" for each in (kind, *get_args(kind)) for value in _choices(each)]
    written = re.sub(r"\w+\.(?=\w)", "", str(field.type)).removesuffix(" | None").replace(" | ", " or ")
    text = " or ".join(choices) or re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", written)
    return text + (", may be empty" if NoneType in get_args(kind) else "")


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _section(kind: type) -> str | None:
    path = f"{kind.__module__}:{kind.__qualname__}"
    titles = {
        f"{load(each).__module__}:{load(each).__qualname__}": title for title, each in [*GROUPS.items(), *FAMILIES.items()]
    }
    return titles.get(path)


def _anchor(title: str) -> str:
    return title.replace(".", "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "needed"
    if isinstance(value, Settings) and not isinstance(value, Component):
        return ""
    return "" if value is None else f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    """Return a default as YAML: a component as its name, with the settings that differ from its own defaults."""
    if not isinstance(value, Component):
        return _flow(to_plain(value))
    plain, usual = to_plain(value), _usual(type(value))
    name = plain.pop("name")
    changed = {key: each for key, each in plain.items() if key not in usual or usual[key] != each}
    return _flow({"name": name, **changed}) if changed else name


def _usual(kind: type[Component]) -> dict[str, Any]:
    try:
        return dict(to_plain(kind()))
    except TypeError:  # a setting without a default
        return {}


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def load(path: str) -> Any:
    """Return the object at the import path ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
