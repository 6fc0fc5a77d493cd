"""``--processes N``: start the processes that share the work of a command on this machine, and end them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusionlm.processes import LOST, PAUSE, SUPERVISED, cores

SAID = (2, 130, 128 + signal.SIGPIPE)  # exit statuses whose reason, if there is one to tell, the process itself has printed
GRACE = 5.0  # seconds that a process has to end


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run the command ``arguments`` in ``count`` processes; return the exit status, once all have ended.

    Each uses its part of the cores. Where one ends before its work is done, the others are stopped.
    """
    if count > (known := cores()):
        print(f"--processes {count}: more than the {known} CPU cores here, so that processes wait for cores", file=sys.stderr)
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    # A refusal in one process ends the store of all: its C++ warnings of that would be printed below the reason.
    environment = {
        "OMP_NUM_THREADS": str(max(1, known // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        SUPERVISED: "1",
    }
    environment |= {name: str(value) for name, value in shared.items()}
    with _started(count, [sys.executable, "-m", "diffusionlm", *arguments], environment) as processes:
        try:
            status, reason = _status(processes)
        except KeyboardInterrupt:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:  # a second Ctrl-C leaves this loop, and kills them
                process.wait()
            return 130 if any(process.returncode for process in processes) else 0
    if reason:  # below the progress bar of a process that was stopped
        print(f"\ndiffusionlm: {reason}", file=sys.stderr)
    return status


@contextmanager
def _started(count: int, command: list[str], environment: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the processes; at the end stop those that are left.

    Each has a session of its own, so that Ctrl-C reaches this process alone, and an input that ends with this process.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=own, start_new_session=True))
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _status(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, str]:
    """Wait until all have ended, or one has failed; return the exit status, and the reason where the process cannot say it."""
    while True:
        time.sleep(PAUSE)
        ended = {rank: status for rank, process in enumerate(processes) if (status := process.poll()) is not None}
        failed = {rank: status for rank, status in ended.items() if status not in (0, LOST)}
        if said := [status for status in failed.values() if status in SAID]:
            return said[0], ""
        if failed or (len(ended) == len(processes) and any(ended.values())):
            rank, status = min((failed or ended).items(), key=lambda each: each[1])  # killed (below 0) before others
            how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
            stopped = "so the others were stopped; what was written before is complete"
            return 1, f"process {rank + 1} of {len(processes)} {how}, {stopped}"
        if len(ended) == len(processes):
            return 0, ""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
