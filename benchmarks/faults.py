"""Faults: hostile input and interruptions, each tried in a child process, and counted in one table.

    python benchmarks/faults.py [folders corpora configs requests kills disk] [--examples 1000] [--kills 50]

``folders``, ``corpora``, ``configs`` and ``requests`` mutate a model folder, a training file, a YAML config and a control
request (bit flips, truncations, JSON values replaced, parts repeated or removed; drawn by ``hypothesis`` from a fixed seed) and
run the command that reads it. A trial is a failure unless its exit status is 0 or 2 (the user's mistake), its message is one
sentence without a traceback, it ends within 10 seconds, and no code of the input is run, no connection opened, no program
started and no file outside the output folder written. ``kills`` stops training and an evaluation by SIGKILL at random moments,
``disk`` lets each write in turn fail (no space) or end early (a quota); the same command must then finish with the result of a
run that nothing stopped. Children are forked from one process that has imported everything. The table goes to stdout; failures
are kept in ``--out`` with their input.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import torch
import yaml
from hypothesis import strategies as st
from measure import exit_status
from mutations import MODEL, MUTATIONS, TEXTS, TINY
from safetensors.torch import load_file
from tqdm import tqdm

from diffusionlm.cli import main as command
from diffusionlm.config import UserError

LIMIT = 10.0  # seconds of CPU time that a trial may take
STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.getaddrinfo")
CHANGED = ("os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink", "shutil.rmtree")


@dataclass
class Ended:
    """How a child ended: its exit status (None: it hung; negative: a signal), its output and what it should not have done."""

    status: int | None
    stdout: str
    stderr: str
    events: list[str] = field(default_factory=list)

    def fault(self) -> str:
        """Return why this is a failure; "" if it is none."""
        if self.status is None:
            return f"hang: more than {LIMIT:g} seconds"
        if "Traceback" in self.stderr:
            return "traceback: " + self.stderr.strip().splitlines()[-1]
        if self.status not in (0, 2):
            return f"status {self.status}"
        if self.events:
            return "; ".join(self.events[:3])
        sentences = [line for line in self.stderr.splitlines() if line.startswith("diffusionlm: ")]
        return f"{len(sentences)} sentences" if self.status == 2 and len(sentences) != 1 else ""


def forked(action: Callable[[], int], folder: Path, limit: float | None = LIMIT, kill_after: float | None = None) -> Ended:
    """Run ``action`` in a forked child whose files may only lie in ``folder``; kill it after ``limit`` or ``kill_after``."""
    pipes = [os.pipe() for _ in range(3)]  # output, messages, events: a full disk does not limit them
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(pipes[number - 1][1], number)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", errors="backslashreplace") for n in (1, 2))
            with watched(folder, pipes[2][1]):
                status = action()
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    for _, writing in pipes:
        os.close(writing)
    with ThreadPoolExecutor(3) as readers:
        texts = list(map(readers.submit, [_read] * 3, [reading for reading, _ in pipes]))
        ended = _wait(child, kill_after or limit, kill_after is not None)
    stdout, stderr, events = (text.result() for text in texts)
    return Ended(ended, stdout, stderr, sorted(set(events.splitlines())))


def _read(number: int) -> str:
    with os.fdopen(number, encoding="utf-8", errors="replace") as file:
        return file.read()


def _wait(child: int, limit: float | None, killed: bool) -> int | None:
    """Return the child's exit status; None if it was killed after ``limit`` seconds of CPU time, or of the clock."""
    begun = time.monotonic()
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        elapsed = time.monotonic() - begun
        if limit is not None and elapsed > limit and (killed or elapsed > 10 * limit or _cpu_seconds(child) > limit):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of a process, which does not grow where a busy machine lets it wait."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def watched(folder: Path, record: int) -> Iterator[None]:
    """Write into the file number ``record`` what this process runs, starts, connects to, or changes outside ``folder``."""
    own = str(folder)

    def outside(path: object, place: object = -1) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        base = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) and place >= 0 else os.getcwd()
        real = os.path.realpath(os.path.join(base, os.fsdecode(path)))
        return not real.startswith((own, "/dev/", "/proc/", tempfile.gettempdir() + "/tmp"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        found = ""
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            found = f"wrote {arguments[0]}" if outside(arguments[0]) else ""
        elif event in CHANGED:
            found = f"{event} {arguments[0]}" if outside(arguments[0], arguments[-1]) else ""
        elif event in STARTED and arguments[0] != "uname":  # which describes the machine in reports
            found = f"{event} {arguments[0]!r}"
        elif event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(own):
            found = f"ran {arguments[0].co_filename}"
        if found:
            os.write(record, found.encode("utf-8", "replace").replace(b"\n", b" ") + b"\n")

    sys.addaudithook(hook)
    yield


def mutations(kind: str, count: int, out: Path | None, seed: int = 0) -> list[str]:
    """Try ``count`` mutations of a kind; return the faults. Failed inputs are kept in ``out``."""
    faults: list[str] = []
    trials = tqdm(total=count, desc=kind, unit="trial", disable=None)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(st.data())
    def trial(data: Any) -> None:
        folder = Path(tempfile.mkdtemp(prefix="fault-"))
        arguments = MUTATIONS[kind](data.draw, folder)
        ended = forked(lambda: command([*arguments]), folder)
        if (folder / "evil-was-run").exists():
            ended.events.append("ran code of the model folder")
        if fault := ended.fault():
            faults.append(f"{fault}  [{' '.join(arguments)}]")
            if out is not None:
                shutil.copytree(folder, out / f"{kind}-{len(faults)}", dirs_exist_ok=True)
        shutil.rmtree(folder)
        trials.update()

    trial()
    trials.close()
    return faults


class Job:
    """Something that can be stopped and continued: the arguments of a command in a folder, and the digest of its result."""

    def __init__(self, name: str, folder: Path, arguments: Sequence[str]) -> None:
        self.name, self.folder, self.arguments = name, folder, list(arguments)

    def run(self, kill_after: float | None = None, before: Callable[[], None] = lambda: None) -> Ended:
        """Run the command in a child, which is killed after some seconds; ``before`` is called in the child first."""

        def action() -> int:
            before()
            return command([*self.arguments])

        return forked(action, self.folder, None, kill_after)

    def result(self) -> Any:
        """Return what must be the same whatever stopped the command: weights and the log, or the report's rows."""
        run = self.folder / "run"
        if self.name == "training":
            log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
            rows = [{key: value for key, value in row.items() if "second" not in key} for row in log]
            weights = load_file(run / "model" / "model.safetensors")
            return rows, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
        rows = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["rows"]
        texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((run / "texts").iterdir())}
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows], texts


def jobs(base: Path) -> Iterator[Callable[[Path], Job]]:
    """Yield makers of the jobs: a tiny training, and an evaluation of the stored model by a tiny judge."""
    plain = {**TINY, "training": {**TINY["training"], "steps": 12, "save_every": 3, "evaluate_every": 4, "sample_every": 4}}
    (base / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    plain["data"] = {**TINY["data"], "corpus": str(base / "texts.txt")}
    (base / "train.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    judge = {**plain, "objective": "causal", "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}}
    del judge["sampling"]
    judge["data"] = {"max_length": 64}
    (base / "judge.yaml").write_text(yaml.safe_dump(judge), encoding="utf-8")
    made = forked(lambda: command(["train", "--config", str(base / "judge.yaml"), "--out", str(base / "judge")]), base, None)
    if made.status != 0:
        raise UserError(f"the judge could not be trained: {made.stderr}")
    yield lambda folder: Job("training", folder, ["train", "--config", str(base / "train.yaml"), "--out", str(folder / "run")])
    yield lambda folder: Job(
        "evaluation", folder,
        ["evaluate", str(MODEL), "--judge", str(base / "judge"), "--count", "6", "--steps", "2", "--temperatures", "0.8", "1",
         "--bound-texts", "2", "--strata", "2", "--orders", "0", "--out", str(folder / "run")],
    )  # fmt: skip


def reference(make: Callable[[Path], Job], base: Path) -> tuple[Any, float, str]:
    """Return the result of an undisturbed job, its seconds and its name."""
    job = make(Path(tempfile.mkdtemp(prefix="reference-", dir=base)))
    begun = time.monotonic()
    ended = job.run()
    if ended.status != 0:
        raise UserError(f"{job.name} failed without any disturbance: {ended.stderr}")
    return job.result(), time.monotonic() - begun, job.name


def finish(job: Job, expected: Any, what: str) -> str:
    """Run a disturbed job until it ends; return what is wrong with the result, "" if nothing."""
    ended = job.run()
    if fault := ended.fault():
        return f"{what}: then {fault}"
    if ended.status != 0:
        return f"{what}: then refused: {ended.stderr.strip().splitlines()[-1]}"
    found = job.result()
    return "" if found == expected else f"{what}: the result differs: {difference(found, expected)}"


def difference(found: Any, expected: Any) -> str:
    """Name the first row and key, or the files, in which a job's result differs from the expected one."""
    if len(found[0]) != len(expected[0]):
        return f"{len(found[0])} rows for {len(expected[0])}"
    for number, (one, other) in enumerate(zip(found[0], expected[0], strict=True)):
        if keys := [key for key in {**other, **one} if one.get(key) != other.get(key)]:
            return f"row {number}, {keys[0]}: {one.get(keys[0])} for {other.get(keys[0])}"
    return "files " + ", ".join(name for name in {**expected[1], **found[1]} if found[1].get(name) != expected[1].get(name))


def kills(base: Path, count: int) -> tuple[int, list[str]]:
    """Kill each job at random moments, and let the same command finish; return the number of trials and the faults."""
    draw, done = random.Random(0), 0
    faults: list[str] = []
    for make in jobs(base):
        expected, seconds, name = reference(make, base)
        for _ in tqdm(range(count), desc=f"kills, {name}", unit="trial", disable=None):
            job = make(Path(tempfile.mkdtemp(prefix="kill-", dir=base)))
            moments = [draw.uniform(0, seconds) for _ in range(draw.randint(1, 2))]
            for moment in moments:
                job.run(kill_after=moment)
            what = f"{name} killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
            faults += filter(None, [finish(job, expected, what)])
            shutil.rmtree(job.folder)
            done += 1
    return done, faults


def disk(base: Path, quotas: Sequence[int] = (0, 100, 2000, 20000)) -> tuple[int, list[str]]:
    """Let every write of a job fail in turn, and files end at a quota of bytes; return the number of trials and the faults."""
    done, faults = 0, list[str]()
    for make in jobs(base):
        expected, _, name = reference(make, base)
        trials: list[tuple[str, Callable[[Path], Callable[[], None]]]] = [
            (f"{name} with a quota of {size} bytes a file", lambda _, size=size: lambda: limit_files(size))  # type: ignore[misc]
            for size in quotas
        ]
        trials += [
            (f"{name} without space at write {number}", lambda folder, number=number: lambda: no_space(folder / "run", number))  # type: ignore[misc]
            for number in range(1, 60)
        ]
        for what, disturb in tqdm(trials, desc=f"disk, {name}", unit="trial", disable=None):
            job = make(Path(tempfile.mkdtemp(prefix="disk-", dir=base)))
            ended = job.run(before=disturb(job.folder))
            fault = ended.fault() if ended.status else ""
            faults += [f"{what}: {fault}"] if fault else filter(None, [finish(job, expected, what)])
            shutil.rmtree(job.folder)
            done += 1
            if ended.status == 0 and "space" in what:
                break  # every write has had its turn
    return done, faults


def limit_files(size: int) -> None:
    """End every write of this process at ``size`` bytes of a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def no_space(folder: Path, number: int) -> None:
    """Let the opening of a file for writing in ``folder`` fail from number ``number`` on, as on a full disk."""
    opened = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            if isinstance(arguments[0], str) and arguments[0].startswith(str(folder)):
                opened += 1
                if opened >= number:
                    raise OSError(28, os.strerror(28), arguments[0])

    sys.addaudithook(hook)


def warm() -> None:
    """Import what the commands use, so that each child finds it: sample from the stored model, and train a step."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, contextlib.redirect_stdout(io.StringIO()):
        texts = Path(folder) / "texts.txt"
        texts.write_text("\n".join(TEXTS), encoding="utf-8")
        (Path(folder) / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {"corpus": str(texts)}}), encoding="utf-8")
        command(["generate", str(MODEL), "--count", "1", "--steps", "2"])
        command(["train", "--config", str(Path(folder) / "tiny.yaml"), "--out", str(Path(folder) / "run")])


def table(counts: dict[str, tuple[int, list[str]]]) -> str:
    """Return the trials and failures of each kind as a table in Markdown."""
    rows = [f"| {kind} | {trials} | {len(faults)} |" for kind, (trials, faults) in counts.items()]
    return "\n".join(["| kind | trials | failures |", "|---|---:|---:|", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials and print the table; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [*MUTATIONS, "kills", "disk"]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"all of them, or some of {', '.join(kinds)}")
    parser.add_argument("--examples", type=int, default=1000, help="mutations of each kind (%(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="of each job (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (%(default)s)")
    parser.add_argument("--out", help="folder for the inputs that failed")
    options = parser.parse_args(arguments)
    if unknown := set(options.kinds) - {*kinds}:
        parser.error(f"no kind is called {min(unknown)!r}: choose from {', '.join(kinds)}")
    torch.set_num_threads(1)
    warm()

    def run() -> list[str]:
        counts: dict[str, tuple[int, list[str]]] = {}
        for kind in options.kinds or kinds:
            with tempfile.TemporaryDirectory(prefix="faults-") as base:
                if kind in MUTATIONS:
                    faults = mutations(kind, options.examples, Path(options.out) if options.out else None, options.seed)
                    counts[kind] = (options.examples, faults)
                else:
                    counts[kind] = kills(Path(base), options.kills) if kind == "kills" else disk(Path(base))
            for fault in counts[kind][1]:
                print(f"{kind}: {re.sub(r'/tmp/[^ /]*/', '', fault)}", file=sys.stderr)
        print(table(counts))
        return [fault for _, faults in counts.values() for fault in faults]

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
