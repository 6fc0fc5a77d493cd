"""The processes of one call: the environment in which a launcher starts them, and how they share the work.

A launcher (torchrun, accelerate launch, or ``--processes``) runs the same command in each process. ``shared`` distributes units
of work, which the processes claim one after the other from a counter in a key-value store; the first process receives all
results, in order, and alone prints and writes. A unit's result does not depend on the process that computes it, so the results
are those of one process.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from diffusionlm.config import UserError

U = TypeVar("U")
R = TypeVar("R")
V = TypeVar("V")
LOST = 75  # exit status of a process that has lost the others (EX_TEMPFAIL)
PAUSE = 0.02  # seconds between two looks at the store: a blocking look would not answer Ctrl-C
ENDED = "ended"
SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
SUPERVISED = "DIFFUSIONLM_SUPERVISED"  # set where the standard input ends with the process that started this one


class PartDone(Exception):
    """Raised in all processes but the first where the shared work ends: the first goes on alone."""


class Lost(Exception):
    """Raised where the store cannot be reached, since the process that holds it has ended."""


def count() -> int:
    """Return the number of processes, 1 without a launcher. Raises UserError where WORLD_SIZE is no such number."""
    return _number("WORLD_SIZE", 1)


def is_first() -> bool:
    """Return whether this process is the first, which alone writes and prints. Raises UserError where RANK is no number."""
    return _number("RANK", 0) == 0


def of_first(value: float) -> float:
    """Return the first process's ``value``, in all of those that a trainer has joined."""
    if count() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_processes(several_allowed: bool, wanted: int | None = None) -> None:
    """Raise UserError in one of several processes, unless they are ``several_allowed`` and a launcher started them.

    ``wanted`` is the number of ``--processes``: where processes are running already, it can only be theirs.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1" and not several_allowed:
        raise UserError(f"WORLD_SIZE={processes}: this command runs in one process; unset WORLD_SIZE")
    if processes != "1" and not (processes.isdecimal() and "MASTER_ADDR" in os.environ):
        launchers = "unset WORLD_SIZE, and start several processes by --processes, torchrun or accelerate launch"
        raise UserError(f"WORLD_SIZE={processes}: expected the number of processes that a launcher started; {launchers}")
    if wanted is not None and wanted < 1:
        raise UserError(f"--processes: expected at least 1, got {wanted}")
    if wanted is not None and count() not in (1, wanted):
        raise UserError(f"--processes: a launcher has started {count()} processes already; leave --processes out")


def check_whole() -> None:
    """Raise UserError where accelerate is to shard the weights: training keeps them whole in each process."""
    for variable, what in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(
                f"{variable}: {what} shards the weights, but the EMA, the checkpoints and the optimizers of this library need "
                "them whole in each process; train with distributed_type MULTI_GPU, see configs/accelerate"
            )


def speaks() -> bool:
    """Return whether this process says what is wrong in all."""
    try:
        return count() == 1 or is_first()
    except UserError:
        return True


def _number(variable: str, least: int) -> int:
    value = os.environ.get(variable, str(least))
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{variable}={value}: expected a number of {least} or more, which a launcher sets; unset it otherwise")
    return int(value)


@dataclass
class Team:
    """The processes of one call, numbered by ``rank`` below ``size``, and their ``store`` of bytes by key.

    All processes run the same code, so that their n-th calls belong together; ``calls`` counts them. ``busy`` is true inside
    a unit of work, which its process does alone.
    """

    store: Any
    rank: int
    size: int
    shares: bool = True
    busy: bool = False
    calls: Iterator[int] = field(default_factory=itertools.count)

    @property
    def active(self) -> bool:
        """Whether work is to be shared here."""
        return self.shares and not self.busy

    def share(self, units: Sequence[U], work: Callable[[U], R], restored: Callable[[Any], R]) -> Iterator[R]:
        """Yield ``work(unit)`` of each unit, in order, in the first process; do claimed units in the others."""
        call, found = next(self.calls), dict[int, R]()
        if self.rank:
            while (claimed := self._claimed(call)) < len(units):
                self._set(f"{call}/{claimed}", self._done(work, units[claimed]))
            return
        left, others = True, set(range(len(units)))  # whether a unit may be unclaimed; those not received yet
        for number in range(len(units)):
            while number not in found:
                for ready in [each for each in sorted(others) if self._has(f"{call}/{each}")]:
                    found[ready] = restored(self._taken(f"{call}/{ready}"))
                    others.remove(ready)
                if number in found:
                    break
                if left and (claimed := self._claimed(call)) < len(units):
                    found[claimed] = self._done(work, units[claimed])
                    others.remove(claimed)
                else:
                    left = False
                    time.sleep(PAUSE)
            yield found.pop(number)

    def agreed(self, value: Any) -> Any:
        """Return the first process's ``value``, of JSON, in all processes, after all have come here."""
        call = next(self.calls)
        self.meet()
        if self.rank == 0:
            self._set(f"{call}/agreed", value)
            return value
        return self._received(f"{call}/agreed")

    def meet(self) -> None:
        """Wait until all processes have come here."""
        key = f"{next(self.calls)}/met"
        self._ask(lambda: self.store.add(key, 1))
        while self._ask(lambda: self.store.add(key, 0)) < self.size:
            time.sleep(PAUSE)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the processes' ``values`` in the first process, and its own in each of the others."""
        call = next(self.calls)
        if self.rank:
            self._set(f"{call}/sum/{self.rank}", list(values))
            return list(values)
        others = (self._received(f"{call}/sum/{rank}") for rank in range(1, self.size))
        return [sum(each) for each in zip(values, *others, strict=True)]

    def first_to(self, what: str) -> bool:
        """Return whether this process is the first to do ``what``; false where the others are lost, who may have done it."""
        try:
            return int(self._ask(lambda: self.store.add(what, 1))) == 1
        except Lost:
            return False

    def finish(self) -> None:
        """End successfully; the first process, which may hold the store, waits for the others."""
        if self.shares:
            self._ask(lambda: self.store.add(ENDED, 1))
            while self.rank == 0 and self._ask(lambda: self.store.add(ENDED, 0)) < self.size:
                time.sleep(PAUSE)

    def _done(self, work: Callable[[U], R], unit: U) -> R:
        self.busy = True
        try:
            return work(unit)
        finally:
            self.busy = False

    def _claimed(self, call: int) -> int:
        return int(self._ask(lambda: self.store.add(f"{call}/claimed", 1))) - 1

    def _set(self, key: str, value: Any) -> None:
        self._ask(lambda: self.store.set(key, json.dumps(value, default=asdict)))

    def _has(self, key: str) -> bool:
        return bool(self._ask(lambda: self.store.check([key])))

    def _taken(self, key: str) -> Any:
        data = self._ask(lambda: self.store.get(key))
        self._ask(lambda: self.store.delete_key(key))
        return json.loads(data)

    def _received(self, key: str) -> Any:
        while not self._has(key):
            time.sleep(PAUSE)
        return json.loads(self._ask(lambda: self.store.get(key)))

    def _ask(self, question: Callable[[], V]) -> V:
        try:
            return question()
        except RuntimeError as error:  # DistNetworkError and DistStoreError are some
            raise Lost(str(error)) from None


_team: Team | None = None  # that this process is in
_joined = itertools.count()  # commands of this process: a launcher may keep the keys of earlier ones


@contextmanager
def team(shares: bool) -> Iterator[Team | None]:
    """Join the processes that a launcher has started, None without a launcher; they share their work where ``shares``.

    Raises:
        UserError: they cannot reach each other.
    """
    global _team
    if count() == 1:
        yield None
        return
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    if SUPERVISED in os.environ:
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        store, rank, size = next(iter(rendezvous("env://")))
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        raise UserError(f"the processes cannot reach each other at {place}: {str(error).splitlines()[0]}") from None
    _team = Team(PrefixStore(f"diffusionlm/{next(_joined)}", store), rank, size, shares)
    try:
        if shares:
            _take_device()
        yield _team
    finally:
        _team = None


@contextmanager
def muted(joined: Team | None) -> Iterator[None]:
    """Print nothing in all processes that share their work but the first."""
    if joined is None or not joined.shares or joined.rank == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _end_with_supervisor() -> None:
    os.read(0, 1)
    os._exit(LOST)


def _take_device() -> None:
    """Let ``cuda`` be another GPU in each process of a machine, as far as there are several."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())


def shared(units: Sequence[U], work: Callable[[U], R], restored: Callable[[Any], R]) -> Iterator[R]:
    """Yield ``work(unit)`` of each unit in order; processes that share their work do each unit once between them.

    Then the first process yields all results, those of the others ``restored`` from JSON, and the others yield nothing.
    Inside a unit nothing is shared.
    """
    if _team is not None and _team.active:
        yield from _team.share(units, work, restored)
    else:
        yield from map(work, units)


def leads() -> bool:
    """Return whether this process receives the results of shared work: it is the first, or alone."""
    return _team is None or not _team.active or _team.rank == 0


def counts() -> bool:
    """Return whether what this process computes now is a part of the work: other processes repeat the set-up of the first."""
    return _team is None or _team.rank == 0 or _team.busy


def agreed(value: V) -> V:
    """Return the ``value``, of JSON, of the first of the processes that share their work, after all have come here."""
    return _team.agreed(value) if _team is not None and _team.active else value


def summed(values: Sequence[float]) -> list[float]:
    """Return the sums of ``values`` over the processes that share their work; only the first receives them."""
    return _team.summed(values) if _team is not None and _team.active else list(values)


def part_done() -> None:
    """End the part of all processes but the first, which goes on alone."""
    if not leads():
        raise PartDone


def at_most(size: int, total: int) -> int:
    """Return ``size``, or less where units of ``size`` would be fewer than the processes that share a ``total``."""
    if _team is None or not _team.active or total > size * (_team.size - 1):
        return size
    return max(1, -(-total // _team.size))
