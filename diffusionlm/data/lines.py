"""Files of one text per line, read in blocks, so that a large file is never in memory as a whole.

Texts, refusals and reports are those of ``reading.read_table`` and ``Table.texts`` for the same file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from diffusionlm.config import UserError
from diffusionlm.data.reading import (
    CONTROL,
    NO_LINE_END,
    WRONG_ENCODING,
    Remarks,
    check_lines,
    wrong_character,
)
from diffusionlm.files import LINE_END, decode, is_utf8, open_bytes, read_bytes, without_marks

BLOCK = 2**24  # bytes that are read at once
_REMARKABLE = re.compile("|".join(pattern.pattern for pattern in (CONTROL, NO_LINE_END, WRONG_ENCODING)))


def text_blocks(path: Path, column: str = "text") -> Iterator[list[str]]:
    """Yield the texts of a .txt file, packed or not, in blocks; ``column`` is what the caller would read of a table.

    Raises:
        UserError: the file cannot be read, is damaged, no text in Unicode, a table with this column, or has no text; a text
            holds a control character.
    """
    begin, found, remarks = 1, False, [Remarks(NO_LINE_END), Remarks(WRONG_ENCODING)]
    for block in text_parts(path):
        lines = block.split("\n") if "\r" not in block else LINE_END.split(block)
        texts = [line.strip() for line in lines]
        if not found and (first := next((line for line, text in zip(lines, texts, strict=True) if text), "")):
            check_lines(first, str(path), column)
            found = True
        if _REMARKABLE.search(block):
            for number, text in enumerate(texts, begin):
                place = partial("{}, line {}".format, path, number)
                if wrong := wrong_character(text):
                    raise UserError(f"{place()}: {wrong}")
                for each in remarks:
                    each.read(text, place)
        begin += len(lines) - 1  # the last one is what follows the last line end of a block: nothing
        yield [text for text in texts if text]
    if not found:
        raise UserError(f"{path}: there is no text in it")
    for each in remarks:
        each.report()


def text_parts(path: Path) -> Iterator[str]:
    """Yield the characters of a file of text, packed or not, in parts that end with a line.

    Raises:
        UserError: the file cannot be read, is damaged, or no text in Unicode.
    """
    with open_bytes(path) as file:
        rest, first = b"", True
        while block := file.read(BLOCK):
            block = rest + block
            if first and not is_utf8(block):
                break
            cut = block.rfind(b"\n") + 1
            if cut:
                yield _characters(block[:cut], path, first)
                first = False
            rest = block[cut:]
        else:
            if rest:
                yield _characters(rest, path, first)
            return
    yield decode(read_bytes(path), str(path))  # in UTF-16 or UTF-32, where bytes of a line end may be parts of a character


def _characters(block: bytes, path: Path, first: bool) -> str:
    try:
        text = decode(block, str(path)) if first else block.decode()
        if "\0" not in text:
            return without_marks(text)
    except (UserError, UnicodeDecodeError):
        pass
    decode(read_bytes(path), str(path))  # which says what is wrong, and on which line of the file
    raise UserError(f"{path}: the file was changed while it was read")
