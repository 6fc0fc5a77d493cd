"""The command line: ``diffusionlm quickstart | train | convert | generate | edit | score | evaluate | report | show | ...``.

Results go to stdout, everything else to stderr. A user's mistake is one sentence and exit status 2, Ctrl-C is 130.
The commands are in ``verbs``. Any setting can be given by its dotted name (``--training.steps 500``).
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from diffusionlm.allocator import keep_few_shapes, keep_freed_memory
from diffusionlm.arguments import Messages, import_modules, mute, parser, split
from diffusionlm.config import UserError, nearest_setting
from diffusionlm.processes import LOST, Lost, PartDone, Team, check_processes, count, muted, speaks, team
from diffusionlm.verbs import launching, training


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 (of ``doctor``), 2 (the user's mistake), 130 (Ctrl-C); a bug raises."""
    # Threads that spin while they wait make training many times slower on a busy machine; PyTorch reads this when it
    # is first imported, which is why nothing above imports it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # User-defined components are imported from the working directory, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = _options(given)
        if wanted := _to_start(options, given):
            return launching.launch(wanted, given)
        mute()
        with team(shares=options.run is not training._train) as joined:
            status = _run(options, joined)
            if joined is not None and status == 0:
                joined.finish()
        return status
    except UserError as error:  # the same in all processes
        return _mistake(str(error), speaks())
    except KeyboardInterrupt:
        _mistake("interrupted; the files written so far are complete", speaks())
        return 130
    except Lost:
        return LOST


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments. Raises UserError for a wrong one."""
    words, overrides = split(arguments)
    options, unknown = parser().parse_known_args(words)
    if unknown:
        hint = nearest_setting(unknown[0], options.known, listed=options.example is None)
        dotted = f"; a setting has a dotted name, a component such as {unknown[0]}.name; see: diffusionlm show"
        raise UserError(f"{unknown[0]}: there is no such argument{hint or dotted}")
    if overrides and options.example is None:
        raise UserError(f"--{overrides[0][0]}: this command takes no settings; see --help")
    options.overrides = overrides
    return options


def _to_start(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Return how many processes this one is to start, 0 for none. Raises UserError for a wrong number."""
    wanted = getattr(options, "processes", None)
    check_processes(hasattr(options, "processes"), wanted)
    if "-" in arguments and max(wanted or 1, count()) > 1:
        raise UserError("-: standard input cannot be read by several processes; save it to a file, and name that")
    return 0 if wanted is None or wanted == 1 or count() > 1 else int(wanted)


def _run(options: argparse.Namespace, joined: Team | None) -> int:
    """Run a command, perhaps as one of several processes, of which one says what is wrong; return the exit status."""

    def mistake(sentence: str) -> int:
        return _mistake(sentence, joined is None or joined.first_to("say"))

    try:
        with muted(joined):
            import_modules(options.imports)
            return int(options.run(options))
    except PartDone:
        return 0
    except UserError as error:
        return mistake(str(error))
    except NotImplementedError as error:
        frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        kind = type(frame.f_locals.get("self", frame.f_locals.get("cls")))
        return mistake(f"{kind.__module__}:{kind.__name__} does not define {frame.f_code.co_name}")
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return mistake(f"{error.filename or 'output'}: {error.strerror or error}")


def _mistake(sentence: str, speaks: bool) -> int:
    """Print a ``sentence``, where this process ``speaks``; return the exit status of a user's mistake."""
    if speaks:
        print(f"diffusionlm: {sentence}", file=sys.stderr)
    return 2


def _reopen() -> None:
    """Open the standard streams that the shell has closed (``2>&-``): another file would get the number of one of them.

    Input is then empty, messages are lost, and output cannot be written, so that no command reports that it has.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            closed = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if closed != number:
                os.dup2(closed, number)
                os.close(closed)
            setattr(sys, name, open(number, mode))


def _written(status: int) -> int:
    """Write the buffered output; return ``status``, or where it is 0 the status of a failure to write it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try it once more, and end with 120
        if status == 0 and not isinstance(error, BrokenPipeError):
            print(f"diffusionlm: output: {error.strerror or error}", file=sys.stderr)
        return status or (128 + signal.SIGPIPE if isinstance(error, BrokenPipeError) else 2)
    return status


def entry() -> NoReturn:
    """Run the command line of this process: its streams are UTF-8 in any locale, and a closed standard error stops no work."""
    _reopen()
    keep_freed_memory()
    keep_few_shapes()
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
    sys.stderr = Messages(sys.stderr)
    sys.exit(_written(main()))


if __name__ == "__main__":
    entry()
