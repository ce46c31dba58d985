"""Finished files: written to a temporary name, flushed to the disk, renamed. Half a file is never seen."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # asked once, before there are threads: there is no asking without setting


def temporary_name(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder (a folder: the names in it)."""
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
        if path.is_file():
            path.chmod(mode)
        flush_to_disk(path)
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(temporary, final)
    flush_to_disk(final.parent)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.write_text(text, encoding="utf-8")
    publish(temporary, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def copy_finished(source: Path, output: Path) -> None:
    """A finished file or flat folder under a second name. It takes no space where the file system has hard links:
    what is finished is never changed in place."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        temporary_name(output).unlink(missing_ok=True)
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
    """An empty folder beside `final`; what an interrupted attempt left there is removed."""
    temporary = temporary_name(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def file_digest(path: Path) -> str:
    """SHA-256 of the content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
