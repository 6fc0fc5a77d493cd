"""The processes that train together, as torchrun and accelerate tell each of them in its environment."""

from __future__ import annotations

import os

from diffusionlm.config import UserError


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


def check_processes(several_allowed: bool) -> None:
    """Raise UserError in one of several processes, unless they are ``several_allowed`` and a launcher started them."""
    processes = os.environ.get("WORLD_SIZE", "1")
    launched = processes.isdecimal() and "MASTER_ADDR" in os.environ
    if processes != "1" and not (several_allowed and launched):
        only = "only train runs in several processes, under torchrun or accelerate launch; unset WORLD_SIZE otherwise"
        raise UserError(f"WORLD_SIZE={processes}: {only}")


def _number(variable: str, least: int) -> int:
    value = os.environ.get(variable, str(least))
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{variable}={value}: expected a number of {least} or more, which a launcher sets; unset it otherwise")
    return int(value)
