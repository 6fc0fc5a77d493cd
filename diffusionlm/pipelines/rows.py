"""Samples as rows: what pipelines yield."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diffusionlm.controls import Outcome


@dataclass(frozen=True)
class Generated:
    """A sample: its text, index in the run, seed, length in tokens (BOS and EOS not counted), and source if it has one."""

    text: str
    index: int
    seed: int
    length: int
    source: str | None = None

    def row(self) -> dict[str, Any]:
        """Return the sample as a row of JSON lines."""
        return {name: value for name, value in asdict(self).items() if name != "source" or value is not None}


@dataclass(frozen=True, kw_only=True)
class Controlled(Generated):
    """A sample of a run with controls: the outcome of each check, and the number of attempts."""

    controls: tuple[Outcome, ...]
    tried: int


def restored(rows: list[dict[str, Any]]) -> list[Generated]:
    """Return the samples of another process, from the JSON values of their fields."""
    return [
        Controlled(**{**row, "controls": tuple(Outcome(**each) for each in row["controls"])}) if "controls" in row
        else Generated(**row)
        for row in rows
    ]  # fmt: skip
