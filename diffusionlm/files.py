"""Reading and atomic writing of text files: one finds either the previous file or the new one, never a part of it."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from diffusionlm.config import FORMAT_VERSION, UserError, nearest

KINDS = ("txt", "jsonl", "json", "csv", "tsv")
PACKED = (".gz", ".zst")
SUFFIXES = (*(f".{kind}{packed}" for packed in ("", *PACKED) for kind in KINDS), ".parquet")
_MARKS = (  # UTF-32 before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF8, "UTF-8-SIG"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_FORMATS = (  # how files begin that are no text
    (b"\x1f\x8b", "gzip data (its name should end in .gz)"), (b"PK\x03\x04", "a zip archive, such as .xlsx or .docx"),
    (b"PAR1", "a parquet file (its name should end in .parquet)"), (b"%PDF", "a PDF file"), (b"{\\rtf", "an RTF file"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull downloads the file)"),
    (b"<!DOCTYPE html", "an HTML page"), (b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"),
    (b"BZh", "bzip2 data"), (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data (its name should end in .zst)"),
)  # fmt: skip
LINE_END = re.compile(r"\r\n|\r|\n")

LOCK = ".lock"  # of a folder, held by the process that writes there
STAGED = ".staged"  # in a folder that ``write_folder`` prepares: without it, the folder is not ours to remove


def read_text(path: str | Path) -> str:
    """Return the characters of a text file, unpacked where its name ends in .gz or .zst. Raises UserError with the reason."""
    path = Path(path).expanduser()
    return decode(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unpacked where its name ends in .gz or .zst. Raises UserError with the reason."""
    with open_bytes(path) as file:
        return file.read()


@contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """Open a file for reading its bytes, unpacked where its name ends in .gz or .zst.

    Raises:
        UserError: it cannot be read, or, also while it is read, it is damaged.
    """
    if path.is_dir():
        raise UserError(f"{path}: expected a file, got a folder")
    if not path.exists():
        if path.is_symlink():
            raise UserError(f"{path}: this link leads to no file, but to {path.readlink()}")
        raise UserError(f"{path}: there is no such file{_nearest_file(path)}")
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if suffix == ".gz":
                yield gzip.GzipFile(fileobj=file)
            elif suffix == ".zst":
                import pyarrow  # type: ignore[import-untyped]

                yield pyarrow.CompressedInputStream(file, "zstd")
            else:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the file is damaged: {error}") from None
    except OSError as error:
        if suffix == ".zst" and not error.errno:  # an error of Arrow
            raise UserError(f"{path}: the file is damaged: {' '.join(str(error).split())}") from None
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor its folder {path.parent}"
    kinds = (*SUFFIXES, ".yaml", ".yml")
    hint = nearest(path.name, [other.name for other in path.parent.iterdir() if other.name.lower().endswith(kinds)])
    return hint if hint.startswith("; did you mean") or len(hint) < 200 else ""  # a full folder is not listed


def decode(data: bytes, place: str) -> str:
    """Return bytes as text, without byte order marks. Raises UserError where they are no text in Unicode."""
    if kind := next((kind for start, kind in _FORMATS if data.startswith(start)), ""):
        raise UserError(f"{place}: expected text, got {kind}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "UTF-8")
    if encoding.startswith("UTF-8") and (nul := data.find(b"\0")) >= 0:
        line = 1 + data.count(b"\n", 0, nul)
        raise UserError(f"{place}, line {line}: NUL, a character that no text has; the file is {_with_nul(data)}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("UTF-8"):
            raise UserError(f"{place}: its byte order mark says {encoding}, but the text is not: {error.reason}") from None
        raise UserError(_not_utf8(error, place)) from None
    return without_marks(text)


def is_utf8(data: bytes) -> bool:
    """Return whether bytes begin with no byte order mark of UTF-16 or UTF-32."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), "UTF-8").startswith("UTF-8")


def without_marks(text: str) -> str:
    """Return ``text`` without byte order marks: files that were joined have them inside, each at the start of a line."""
    return re.sub("(^|[\r\n])\ufeff+", r"\1", text) if "\ufeff" in text else text


def _line_of(text: str, index: int) -> int:
    return 1 + len(LINE_END.findall(text, 0, index))


def _not_utf8(error: UnicodeDecodeError, place: str) -> str:
    """Say where bytes stop to be UTF-8, and what they may be instead."""
    data = error.object
    before, rest = data[: error.start].decode("utf-8", "ignore"), data[error.start :]
    sentence = f"{place}, line {_line_of(before, len(before))}: expected UTF-8 text, got the byte {data[error.start]:#x}"
    if not (before + rest.decode("utf-8", "ignore")).isascii():
        cut = error.end == len(data) and error.reason == "unexpected end of data"
        other = "the file was cut inside its last character" if cut else "so the file mixes two encodings"
        return f"{sentence}; other characters are UTF-8, {other}"
    try:
        line = re.split(r"[\r\n]", before)[-1][-30:] + re.split(rb"[\r\n]", rest)[0][:30].decode("windows-1252")
    except UnicodeDecodeError:
        return f"{sentence}; convert the file to UTF-8, for example with iconv"
    return f"{sentence}; if {line!r} is right, convert it: iconv -f windows-1252 -t utf-8"


def _with_nul(data: bytes) -> str:
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        text = data.decode(name, "replace")
        if sum(map(text.count, " \n")) > 0.08 * len(text):  # in another order of bytes there are no blanks
            return f"probably {name} without a byte order mark; convert it: iconv -f {name} -t utf-8"
    return "probably binary"


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises UserError where it cannot be read or is damaged."""
    return _json(path)


def taken_version(plain: dict[str, Any], where: str | Path) -> int:
    """Remove ``format_version``, 1 where it is missing, from the object of a JSON file and return it.

    Raises:
        UserError: it is no whole number, or newer than this library.
    """
    version = plain.pop("format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(f"{where}: format_version: expected a whole number up to {FORMAT_VERSION}, got {version!r}")
    return version


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file that anybody may have made.

    Raises:
        UserError: it cannot be read, is not JSON or not an object; NaN and Infinity, which JSON does not have, are refused.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"expected finite numbers, got {name}")

    plain = _json(path, parse_constant=constant)
    if not isinstance(plain, dict):
        raise UserError(f"{path}: expected a JSON object, got {json.dumps(plain)[:60]}")
    return plain


def _json(path: Path, **options: Any) -> Any:
    try:
        data = read_bytes(path)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise ValueError("expected UTF-8, got UTF-16 or UTF-32")
        return json.loads(decode(data, str(path)), **options)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: expected JSON, but the file is damaged: {reason}") from None


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Create or replace ``path``: ``save(staged)`` writes a neighbouring file, which is then renamed.

    Raises:
        UserError: the disk is full, the permission is missing.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"{path.name}.{os.getpid()}.new")  # each of several processes stages its own
        try:
            save(staged)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Create or replace a text file in UTF-8; see ``write``."""
    write(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def write_folder(folder: Path, save: Callable[[Path], object], trial: bool = False) -> None:
    """Create or replace the files in ``folder`` that ``save(staged)`` writes to a neighbouring folder.

    ``trial`` leaves ``folder`` as it is: the call only shows whether saving is possible.

    Raises:
        UserError: a file cannot be written, each is then either the old or the new one; the neighbour holds other files.
    """
    staged = folder.with_name(f"{folder.name}.new")
    if staged.is_symlink() or (staged.exists() and not (staged / STAGED).is_file()):
        raise UserError(f"{staged}: this place is needed to prepare {folder.name}/; rename or move what is there")
    with disk_errors(folder):
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            (staged / STAGED).touch()
            save(staged)
            open_permissions(staged)
            if not trial:
                folder.mkdir(exist_ok=True)
                for file in sorted(path for path in staged.rglob("*") if path.is_file() and path.name != STAGED):
                    place = folder / file.relative_to(staged)
                    place.parent.mkdir(exist_ok=True)
                    os.replace(file, place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def open_permissions(folder: Path) -> None:
    """Give the files in ``folder`` the permissions of the umask: safetensors makes files that only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


@contextmanager
def locked(folder: Path, doing: str, keep: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which is made; the operating system releases it when the process ends, however it ends.

    Without ``keep`` its file is removed at the end. A folder that was made for it and in which nothing was written is removed.

    Raises:
        UserError: another process, which is ``doing`` something there, holds it; the folder cannot be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    keep = keep or (folder / LOCK).exists()  # of a run
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"{folder}: another process is {doing} here; wait for its end, or choose another --out") from None
    try:
        yield
    finally:
        if not keep:
            with suppress(OSError):
                (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            if made and {each.name for each in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                for place in made:
                    place.rmdir()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` (a full disk, no permission) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError is what torch.save raises
        if isinstance(error, RuntimeError) and "write" not in str(error).lower():
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written: {reason}; what was saved before is intact") from error
