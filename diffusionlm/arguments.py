"""Commands for the command line, as functions with their options, by argparse; mistakes are one sentence each."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, NoReturn

from diffusionlm.config import UserError

OVERRIDES = """Any setting can be given by its dotted name, --NAME VALUE; `diffusionlm show` lists all settings.
Example: diffusionlm {example}"""
Option = tuple[list[str], dict[str, Any]]  # flags and keywords of argparse's add_argument
Command = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, tuple[Command, tuple[Option, ...], str | None]] = {}  # function, options, example of an override


def command(*options: Option, example: str | None = None) -> Callable[[Command], Command]:
    """Add a function to ``COMMANDS``; its docstring is the help text. Without ``example`` the command takes no settings."""

    def add(run: Command) -> Command:
        COMMANDS[run.__name__.strip("_")] = (run, options, example)
        return run

    return add


def option(flags: str, help: str, metavar: str = "N", **more: Any) -> Option:
    """Return an option; the placeholder N stands for an integer, X for a number, any other for a string."""
    return flags.split(), {"help": help, "metavar": metavar, "type": {"N": int, "X": float}.get(metavar, str), **more}


def several(flags: str, help: str, metavar: str = "FILE", **more: Any) -> Option:
    """Return an option that may be repeated."""
    return option(flags, f"{help}; may be repeated", metavar, action="append", default=[], **more)


def flag(flags: str, help: str, value: Any = True, **more: Any) -> Option:
    """Return an option without a value of its own."""
    return flags.split(), {"help": help, "action": "store_const", "const": value, **more}


IMPORT = several("--import", "import this module first, for a model with components of your own", "MODULE", dest="imports")


def parser(completions: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; ``completions`` is what shtab completes a value with, by its placeholder."""
    found = _Parser(
        prog="diffusionlm",
        description="Text diffusion on word vectors: train on your own texts, sample, control, evaluate.",
        epilog="Start with: diffusionlm quickstart",
    )
    found.add_argument("--version", action="version", version=f"diffusionlm {version('diffusion-lm')}")
    verbs = found.add_subparsers(metavar="command", required=True)
    form = argparse.RawDescriptionHelpFormatter
    for name, (run, options, example) in COMMANDS.items():
        help = inspect.cleandoc(run.__doc__ or "")
        epilog = None if example is None else OVERRIDES.format(example=example)
        command = verbs.add_parser(name, help=help.splitlines()[0], description=help, epilog=epilog, formatter_class=form)
        for flags, keywords in [*options, IMPORT]:
            added = command.add_argument(*flags, **keywords)
            if completions and keywords.get("metavar") in completions:
                added.complete = completions[keywords["metavar"]]  # type: ignore[attr-defined]
        command.set_defaults(run=run, example=example, known=command._option_string_actions)
    return found


def split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separate dotted overrides, ``--a.b value`` or ``--a.b=value``, from the arguments that argparse parses."""
    words, overrides, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word[2:].partition("=")
        if not (word.startswith("--") and "." in name):
            words.append(word)
            continue
        if not (equals or rest):
            raise UserError(f"--{name}: a value is expected after it")
        overrides.append((name, value if equals else rest.pop(0)))
    return words, overrides


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake as a ``UserError``."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def import_modules(names: Sequence[str]) -> None:
    """Import the modules that ``--import`` names. Raises UserError where one cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import: cannot import {name}: {error}") from None


def mute() -> None:
    """Silence the progress bars and notices of datasets and transformers."""
    try:
        import datasets  # type: ignore[import-untyped]
        import transformers
    except ImportError:  # which the command says where it needs them, and ``doctor`` in any case
        return
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


class Messages:
    """Standard error whose reader may go away: what is written then is lost, and the work goes on."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if it can be written."""
        with suppress(OSError):
            return int(self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
