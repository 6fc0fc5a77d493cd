"""The reference of the command line, made from the commands and their options."""

from __future__ import annotations

import inspect
from typing import Any

import diffusionlm.verbs  # noqa: F401  # which fills COMMANDS
from diffusionlm.arguments import COMMANDS, IMPORT, OVERRIDES, Command, Option


def markdown() -> str:
    """Return a section for each command."""
    return "\n\n".join(section(name, *parts) for name, parts in COMMANDS.items())


def section(name: str, run: Command, options: tuple[Option, ...], example: str | None) -> str:
    """Return the section of a command: what it does, its arguments, its options."""
    listed = [*options, IMPORT]
    places = [(flags, more) for flags, more in listed if not flags[0].startswith("-")]
    usage = " ".join(["diffusionlm", name, *(_place(flags[0], more) for flags, more in places), "[options]"])
    parts = [f"## {name}", inspect.cleandoc(run.__doc__ or "").replace("``", "`"), f"```text\n{usage}\n```"]
    rows = [f"| {_names(flags, more)} | {_help(more)} |" for flags, more in listed]
    parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if example is not None:
        text = OVERRIDES.format(example=example).replace("\nExample: ", " Example: `") + "`."
        parts.append(text.replace("--NAME VALUE", "`--NAME VALUE`"))
    return "\n\n".join(parts)


def _place(name: str, more: dict[str, Any]) -> str:
    shown = str(more.get("metavar") or name)
    return {"?": f"[{shown}]", "*": f"[{shown} ...]", "+": f"{shown} [{shown} ...]"}.get(str(more.get("nargs")), shown)


def _names(flags: list[str], more: dict[str, Any]) -> str:
    takes = more.get("action") not in ("store_const", "store_true") and flags[0].startswith("-")
    value = f" {more.get('metavar')}" if takes and more.get("metavar") else ""
    shown = flags if flags[0].startswith("-") else [str(more.get("metavar") or flags[0])]
    return ", ".join(f"`{each}{value}`" for each in shown).replace("|", r"\|")


def _help(more: dict[str, Any]) -> str:
    text = str(more.get("help", "")).replace("%(default)s", str(more.get("default"))).replace("%%", "%")
    if more.get("choices"):
        text += f" (one of: {', '.join(map(str, more['choices']))})"
    return text[:1].upper() + text[1:].replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")
