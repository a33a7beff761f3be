"""Finding and reading files: every fault is named with its file and line before anything is built on it."""

import codecs
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from minialpaca.errors import UserError, reason

LONGEST_READ = 1 << 20  # bytes; a line longer than this arrives in parts, so that no line has to fit in memory
AT_ONCE = 1 << 16  # bytes that are cut into lines together
SHOWN_FAULTS = 10


def expand(sources: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """Files, folders (searched through and through) and globs → a sorted list of distinct, non-empty files."""
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _matches(source, suffixes):
            if not path.name.endswith(tuple(suffixes)):
                raise UserError(f"{path}: unknown kind of file; give {', '.join(suffixes)}")
            if path.stat().st_size == 0:
                raise UserError(f"{path}: is empty; remove it or give another file")
            found.setdefault(path.resolve(), path)
    return list(found.values())


def refuse_shared(training: Sequence[str], held_out: Sequence[str], suffixes: Sequence[str], name: str) -> None:
    """A file that is trained on measures memory."""
    shared = {p.resolve() for p in expand(training, suffixes)} & {p.resolve() for p in expand(held_out, suffixes)}
    if shared:
        raise UserError(f"{name}: {min(shared)} is in data.source too; what is trained on cannot validate. Take it out of one")


def _matches(source: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(tuple(suffixes)))
        if not inside:
            raise UserError(f"{source}: no {', '.join(suffixes)} in this folder")
        return inside
    matched = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())
    if not matched:
        raise UserError(f"{source}: no such file, folder or glob (seen from {Path.cwd()})")
    return matched


def read_lines(path: Path, on_bytes: Callable[[int], None] = lambda n: None, encoding: str = "utf-8",
               mend: str = "convert the file first, e.g. iconv -f {} -t UTF-8") -> Iterator[tuple[int, str]]:
    """(line number, text with its "\\n") of a text file, plain or .gz; CRLF becomes LF, a leading BOM is dropped.

    `on_bytes` hears how many bytes on disk each step has used, for a progress bar; `mend` is the advice where the
    bytes are not in this encoding, {} being one that they may be in.
    """
    decode = codecs.getincrementaldecoder(encoding)().decode
    number, used = 1, 0
    try:
        with open(path, "rb") as disk, (gzip.open(disk) if path.suffix == ".gz" else disk) as file:
            if "\n".encode(encoding) != b"\n":  # UTF-16 and the like, in which that byte need not end a line
                file, decode = _as_utf8(file.read(), encoding), codecs.getincrementaldecoder("utf-8")().decode
            while data := _whole_lines_of(file):
                text = decode(data).replace("\r\n", "\n")
                *lines, last = (text if used else text.removeprefix("\ufeff")).split("\n")
                for number, line in enumerate(lines, number):
                    yield number, line + "\n"
                number += bool(lines)
                if last:
                    yield number, last
                before, used = used, disk.tell()
                on_bytes(used - before)
            decode(b"", final=True)
    except UnicodeError as error:
        number = getattr(error, "line", number + getattr(error, "object", b"")[:getattr(error, "start", 0)].count(b"\n"))
        raise UserError(f"{path}, line {number}: is not {encoding.upper()} ({getattr(error, 'reason', error)}); "
                        f"{mend.format(_likely(error, encoding))}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}, line {number}: the gzip file is broken or cut off ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None


def _whole_lines_of(file: BinaryIO) -> bytes:
    """Many lines at once, which Python cuts and decodes quickly; not the end of one that is too long, nor half a CRLF."""
    data = file.read(min(AT_ONCE, LONGEST_READ))
    if data and not data.endswith(b"\n"):
        data += file.readline(LONGEST_READ - len(data))
    return data + file.read(1) if data.endswith(b"\r") else data


def _likely(error: UnicodeError, encoding: str) -> str:
    """What the bytes may be in if not in this: UTF-16 is told by its mark, Chinese by bytes above 127 that come in pairs."""
    data = getattr(error, "object", b"")
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if codecs.lookup(encoding).name != "utf-8":
        return "utf-8"
    high, chinese = sum(byte > 127 for byte in data), sum(not c.isascii() for c in data.decode("gb18030", "ignore"))
    return "gb18030" if high >= 1.8 * chinese and _decodes(data, "gb18030") else "windows-1252"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def is_utf8_beyond_ascii(path: Path) -> bool:
    """Whether the whole file decodes as UTF-8, and not for being ASCII alone."""
    try:
        return sum(not line.isascii() for _, line in read_lines(path)) > 0
    except UserError:
        return False


def _as_utf8(data: bytes, encoding: str) -> io.BytesIO:
    try:
        return io.BytesIO(data.decode(encoding).encode())
    except UnicodeDecodeError as error:
        error.line = 1 + data[:error.start].decode(encoding, "ignore").count("\n")
        raise


def read_objects(path: Path, on_bytes: Callable[[int], None] = lambda n: None,
                 faults: list[str] | None = None) -> Iterator[tuple[str, dict]]:
    """(place, object) of a .jsonl or .jsonl.gz (one object a line, blank lines skipped) or a .json (one array).

    Faulty records go to `faults` as "line 7: …"; without that list the first raises.
    """
    if path.name.endswith(".json"):
        yield from array_objects(path, read_lines(path), faults)
    else:
        yield from line_objects(path, read_lines(path, on_bytes), faults)


def line_objects(path: Path, lines: Iterator[tuple[int, str]], faults: list[str] | None) -> Iterator[tuple[str, dict]]:
    """One object a line; blank lines are skipped."""
    for number, line in whole_lines(lines):
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=_each_key_once)
            except (ValueError, RecursionError) as error:
                fault(faults, path, f"line {number}: is no JSON ({_first_line(error)})")
                continue
            if isinstance(record, dict):
                yield f"line {number}", record
            else:
                fault(faults, path, f"line {number}: is no JSON object")


def array_objects(path: Path, lines: Iterator[tuple[int, str]], faults: list[str] | None) -> Iterator[tuple[str, dict]]:
    """One array of objects."""
    text = "".join(line for _, line in lines)
    try:
        records = json.loads(text, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {_first_line(error)}; one object a line needs the ending .jsonl") from None
    if not isinstance(records, list):
        raise UserError(f"{path}: holds {type(records).__name__} where an array of objects is expected")
    for number, record in enumerate(records, 1):
        if isinstance(record, dict):
            yield f"record {number}", record
        else:
            fault(faults, path, f"record {number}: is no object")


def _each_key_once(pairs: list[tuple[str, object]]) -> dict:
    """JSON's reader would take the last of two and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)!r} stands twice")
    return found


def whole_lines(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Joins the parts of lines longer than one read."""
    parts: list[str] = []
    for number, text in lines:
        parts.append(text)
        if text.endswith("\n"):
            yield number, "".join(parts)
            parts = []
    if parts:
        yield number, "".join(parts)


def fault(faults: list[str] | None, path: Path, text: str) -> None:
    if faults is None:
        raise UserError(f"{path}, {text}")
    faults.append(text)


def is_writable(text: str) -> bool:
    """JSON may hold half a surrogate pair ("\\ud800"), which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def other_data(run: Path) -> UserError:
    """What there is to say where a run is to go on with what it has not learned from."""
    return UserError(f"{run}: the data are not those that this run began with; put them back, or choose another run.dir for the new ones")


def refuse(path: Path, faults: list[str], mend: str) -> None:
    """Stop if there are faults, naming the first ten."""
    if faults:
        shown = "; ".join(faults[:SHOWN_FAULTS])
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        records = len({fault.partition(":")[0] for fault in faults})  # one may have several faults
        raise UserError(f"{path}: {records} bad record{'s'[:records > 1]}: {shown}{more}. {mend}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all: whoever is stopped in the middle leaves the file as it was."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from None
