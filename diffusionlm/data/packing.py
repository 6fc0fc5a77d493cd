"""Packed rows: texts in a row, each followed by EOS, cut into rows of exactly the maximum length.

    BOS w1 ... w9 EOS w1 ... w4 EOS w1 ... EOS        BOS (the same text goes on) ...

The layout of MDLM (Sahoo et al. 2024) for OpenWebText: attention goes across texts, BOS and EOS are at the ends of each row,
and the tokens behind the last complete row are left out. No position is padding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]


class Packer:
    """Packs blocks of texts, one after the other, into rows of ``max_length`` tokens that begin with ``start``."""

    def __init__(self, start: int, end: int, max_length: int) -> None:
        self.start, self.end, self.max_length = start, end, max_length
        self.rest, self.owners = np.zeros(0, np.int32), np.zeros(0, np.int64)

    def pack(self, ids: Ids, lengths: Lengths, number: int) -> tuple[Ids, Lengths, Lengths]:
        """Return the rows that the next texts complete: ids, lengths, and the number of the text in which each row begins.

        The texts are numbered from ``number`` on; ``ids`` are the tokens of all, ``lengths`` the number of each one's. Empty
        texts are skipped.
        """
        kept = np.flatnonzero(lengths)
        stream = np.concatenate([self.rest, np.insert(ids, np.cumsum(lengths[kept]), self.end)])
        owners = np.concatenate([self.owners, np.repeat(kept + number, lengths[kept] + 1)])
        room = self.max_length - 2
        count = len(stream) // room
        rows = np.full((count, self.max_length), self.end, np.int32)
        rows[:, 0], rows[:, 1:-1] = self.start, stream[: count * room].reshape(count, room)
        self.rest, self.owners = stream[count * room :], owners[count * room :]
        return rows.ravel(), np.full(count, self.max_length), owners[: count * room : room]
