"""Finished files: written to a temporary name, flushed to the disk, renamed. Half a file is never seen."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transact.errors import Refusal

TEMPORARY_SUFFIX = ".tmp"
DIGEST_BLOCK_BYTES = 1 << 22


class DamagedFile(Refusal):
    """A file that is not as it was written, or cannot be read. path: of the file. problem: in words."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{str(path)!r} {problem}")
        self.path, self.problem = path, problem


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # read once, before there are threads: the umask can only be read by setting it


def temporary_name(path: Path) -> Path:
    """Return the name that a file or folder has until it is complete."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def flush_to_disk(path: Path) -> None:
    """Flush a file or a folder to the disk with fsync; of a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete temporary file or folder its final name, and its files the mode that the user's umask asks for.

    safetensors makes files that nobody else on the cluster can read.
    """
    mode = 0o666 & ~UMASK
    for path in (*temporary.rglob("*"), temporary):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:  # a link's may be another user's file
            path.chmod(mode)
        flush_to_disk(path)
    if temporary.is_dir() and final.is_symlink():
        final.unlink()  # removes the link alone: the folder that it points to is not ours
    if temporary.is_dir() and final.is_dir():
        _move_into(temporary, final)
    else:
        os.replace(temporary, final)
    flush_to_disk(final.parent)


def _move_into(temporary: Path, final: Path) -> None:
    """Move our files into a folder that exists; the files of others in it stay beside them.

    Raises:
        FileExistsError: one of those has the name of one of ours.
    """
    for path in temporary.iterdir():
        if os.path.lexists(final / path.name):
            raise FileExistsError(errno.EEXIST, "a file that is not of this run is in the way", str(final / path.name))
    for path in temporary.iterdir():
        os.replace(path, final / path.name)
    temporary.rmdir()
    flush_to_disk(final)


def remove_flat(folder: Path) -> None:
    """Remove a folder of our own that holds only files; never what is deeper, or behind a link.

    Raises:
        OSError: it holds a folder, which is not ours.
    """
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
    folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a finished text file, and make its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    if temporary.is_symlink():
        temporary.unlink()
    temporary.write_text(text, encoding="utf-8")
    publish(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; a figure that is infinite or not a number becomes null, as JSON has no word for it."""
    write_text(path, json.dumps(_without_non_finite(value), indent=2, allow_nan=False) + "\n")


def _without_non_finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _without_non_finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_non_finite(each) for each in value]
    return value


def read_json(path: Path) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        DamagedFile: it is empty, cut off, or not JSON.
        OSError: it is missing, is a folder, or may not be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # ValueError: of json, of UTF-8, of numbers too long to convert
        raise DamagedFile(path, f"is not JSON (it has {path.stat().st_size} bytes): torn or overwritten") from None


def copy_finished(source: Path, output: Path) -> None:
    """Give a finished file or flat folder a second name.

    It takes no space where the file system has hard links, which is safe: a finished file is never changed in place.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        temporary_name(output).unlink(missing_ok=True)
        if output.is_file() and not output.is_symlink() and output.samefile(source):
            return  # renaming one link of a file to another would leave both
        _link(source, temporary_name(output))
    else:
        temporary = fresh_temporary_folder(output)
        for file in source.iterdir():
            _link(file, temporary / file.name)
    publish(temporary_name(output), output)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def fresh_temporary_folder(final: Path) -> Path:
    """Return a new, empty folder beside `final`, after removing what an interrupted attempt left there."""
    temporary = temporary_name(final)
    remove_flat(temporary)
    temporary.mkdir(parents=True)
    return temporary


def file_digest(path: Path, on_read: Callable[[], object] = lambda: None) -> str:
    """Return the SHA-256 of the content, read once from front to back. on_read: called after every few megabytes."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(DIGEST_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            on_read()
    return digest.hexdigest()


def size_damage_of(path: Path, recorded: Mapping[str, Any]) -> str | None:
    """Return what `damage_of` finds without reading the content."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(about.st_mode):
        return "is no file"
    return None if about.st_size == recorded["size"] else f"has {about.st_size} of {recorded['size']} bytes"


def damage_of(path: Path, recorded: Mapping[str, Any], on_read: Callable[[], object] = lambda: None) -> str | None:
    """Return what is wrong with a finished file, in words; None if it is as it was recorded.

    Args:
        recorded: its "size" in bytes and its "sha256".
        on_read: called after every few megabytes (a watchdog waits for a sign of life).
    """
    problem = size_damage_of(path, recorded)
    if problem is not None:
        return problem
    try:
        digest = file_digest(path, on_read)
    except OSError as error:  # blocks that the disk cannot read
        return f"cannot be read: {error.strerror}"
    return None if digest == recorded["sha256"] else "has another SHA-256 than when it was written"


def verify_file(path: Path, recorded: Mapping[str, Any], on_read: Callable[[], object] = lambda: None) -> None:
    """Raise DamagedFile unless a finished file is as it was recorded; arguments as in `damage_of`.

    Raises:
        DamagedFile: it is missing, or has another size or SHA-256.
    """
    problem = damage_of(path, recorded, on_read)
    if problem is not None:
        raise DamagedFile(path, problem)
