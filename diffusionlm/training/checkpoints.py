"""The run folder: its lock, its checkpoints, its log. Only what the trainer wrote is counted or removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from diffusionlm import files
from diffusionlm.config import UserError
from diffusionlm.data.folders import damage_errors
from diffusionlm.files import read_json, read_text, write_text
from diffusionlm.models.io import not_finite
from diffusionlm.processes import is_first
from diffusionlm.recipe.frozen import Frozen

MARKER = "complete.json"  # of a checkpoint, written last
TEACHERS = "teachers.safetensors"  # in a checkpoint: teachers that started as copies of the model
WEIGHTS, EMA, STATE = "model.safetensors", "ema.safetensors", "trainer_state.json"
BEST = "best.safetensors"  # in a checkpoint: the EMA's weights at the best evaluation before it
STREAM = "stream.json"  # in a checkpoint: the position in a streamed corpus
FILES = (MARKER, WEIGHTS, EMA, BEST, TEACHERS, STATE, STREAM, "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
PARTS = (f"{MARKER}.*.new", ".tmp*")  # of such files, left by a process that was killed
REMEDY = "train in another --out with a lower learning rate (training.optimizer) or with training.clip 1"
RECORDS = ("model", "samples/*", "checkpoints/*")  # of a run that has begun


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the operating system releases it when the process ends, however it ends.

    Of several processes that train together, the first holds it.

    Raises:
        UserError: another run holds it; the folder cannot be written.
    """
    if not is_first():
        yield
        return
    with files.locked(folder, "training"):
        yield


@contextmanager
def unclaimed_if_refused(folder: Path) -> Iterator[None]:
    """Remove what a new run wrote into ``folder``, and the folders made for it, where it fails before anything is recorded.

    Such a folder would hold nothing but a claim, which refuses the corrected run. A row of the log, a checkpoint or samples
    stay, as does what was there before.
    """
    there = {*folder.iterdir()} if folder.is_dir() else set()
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except Exception:
        log = folder / "log.jsonl"
        recorded = (log.exists() and log.stat().st_size) or any(any(folder.glob(pattern)) for pattern in RECORDS)
        if is_first() and not recorded and folder / "config.yaml" not in there:
            for path in {*folder.glob("*")} - there:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for place in made:
                with suppress(OSError):
                    place.rmdir()
        raise


def checkpoint_step(path: Path) -> int | None:
    """Return the step of a complete checkpoint, whose marker and name agree, or None for any other file or folder."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        step = read_json(path / MARKER)["step"]
        if isinstance(step, int) and path.name == f"checkpoint-{step}" and not path.is_symlink():
            return step
    return None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the run's complete checkpoints, oldest first."""
    found = {
        path: step for path in (folder / "checkpoints").glob("checkpoint-*") if (step := checkpoint_step(path)) is not None
    }
    return sorted(found, key=lambda path: found[path])


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    return next(reversed(complete_checkpoints(folder)), None)


def clear_places(folder: Path, steps: range) -> None:
    """Remove what interrupted runs left where the checkpoints of ``steps`` will be written.

    Raises:
        UserError: something else is in such a place: a damaged checkpoint, a copy of one, or other files.
    """
    for path in sorted((folder / "checkpoints").glob("checkpoint-*")):
        number = path.name.removeprefix("checkpoint-")
        if not number.isdecimal() or str(int(number)) != number or int(number) not in steps:
            continue
        if (path / MARKER).exists():
            damaged = f"its {MARKER} does not name step {number}, so it is damaged or a copy"
            raise UserError(f"{path}: {damaged}; delete it, or move it away, to resume from the checkpoint before it")
        if path.is_symlink() or not path.is_dir() or _other_files(path):
            raise UserError(f"{path}: this place is needed for a checkpoint; rename or move what is there")
        remove_checkpoint(path)


def _other_files(path: Path) -> bool:
    return any(not any(file.match(pattern) for pattern in FILES + PARTS) for file in path.iterdir())


def remove_checkpoint(path: Path) -> None:
    """Remove the files of a checkpoint, its marker first, and its folder unless it holds other files."""
    for pattern in FILES + PARTS:
        for file in path.glob(pattern):
            file.unlink()
    with suppress(OSError):
        path.rmdir()


def random_state(rank: int, processes: int) -> str:
    """Return the name of the file that holds the random state of a process in a checkpoint."""
    return "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"


def check_processes(path: Path, processes: int) -> None:
    """Raise UserError where a checkpoint was written by another number of processes: they would not continue its noise."""
    found = {file.name for file in path.glob("rng_state*.pth")}
    if len(found) not in (0, processes) and found == {random_state(rank, len(found)) for rank in range(len(found))}:
        raise UserError(
            f"{path}: expected the number of processes that wrote this checkpoint, {len(found)}, got {processes}: "
            "in another number, training would not continue with the same noise"
        )


def damage(file: Path) -> AbstractContextManager[None]:
    """Turn a failure to read a ``file`` of a checkpoint into a UserError."""
    what = f"this checkpoint is damaged; delete it to resume from the one before ({file.name})"
    return damage_errors(file.parent, what)


def check_finite(module: nn.Module, path: Path) -> None:
    """Raise UserError where a weight is infinite or not a number, so that ``path`` is not written."""
    if name := not_finite(module.named_parameters()):
        raise UserError(f"{path}: not written: training has diverged, and the weights {name} are not finite; {REMEDY}")


def copied_teachers(objective: nn.Module) -> nn.ModuleDict:
    """Return the objective's teachers that started as copies of the model, which a checkpoint must hold, by attribute."""
    places = [(f"{place}/{name}", value) for place, module in objective.named_modules() for name, value in vars(module).items()]
    teachers = {place: value.module for place, value in places if isinstance(value, Frozen) and value.copied}
    return nn.ModuleDict({place.replace(".", "/"): module for place, module in teachers.items()})


def trim_log(path: Path, step: int) -> None:
    """Drop the rows of ``log.jsonl`` after ``step``, and an incomplete last row: the resumed run logs these steps again.

    Raises:
        UserError: another row is damaged.
    """
    if not path.exists():
        return
    kept = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        row = _row(line)
        if row is None and number < len(lines):  # the last line has no end
            raise UserError(f"{path}:{number}: expected a row of the log, got {line[:60]!r}; delete this line")
        if row is not None and row["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _row(line: str) -> dict[str, Any] | None:
    """Return a row of the log, or None where the line is none."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
    return None
