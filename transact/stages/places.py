"""Whether the folders that a request names can be written, judged without writing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from transact.config import RunConfig

LONGEST_FILE_NAME = 255  # bytes
REASONS = {
    errno.ENOTDIR: "it is below a file",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "a name in it is too long",
    errno.EACCES: "you may not look into it",
}


def check_places(config: RunConfig) -> None:
    """
    Raises:
        ValueError: one line: the setting, the path, why nothing can be written there.
    """
    check_folder("output_dir", config.output_dir)
    check_folder("data.token_store", config.data.token_store)
    if config.share_dir is not None:
        check_folder("share_dir", config.share_dir)
    _check_apart(config)
    if config.launch.kind != "inline" and "%" in os.path.abspath(config.output_dir):
        raise ValueError(
            f"output_dir={config.output_dir!r} is not allowed: submitit and SLURM read % in a path as a format"
        )


def _check_apart(config: RunConfig) -> None:
    """The store is written first: in a run's folder, or a sweep's, it would be taken for somebody else's files."""
    store = Path(os.path.realpath(config.data.token_store))
    run = config.output_dir if config.share_dir is None else os.path.dirname(config.share_dir)
    if store.is_relative_to(os.path.realpath(run)):
        raise ValueError(
            f"data.token_store={config.data.token_store!r} is not allowed: it lies in {run!r}, which holds what the "
            "run makes and nothing else; name a folder beside it"
        )


def check_folder(setting: str, path: str) -> None:
    """
    Raises:
        ValueError: the path is no folder, and none can be made there.
    """
    place = Path(os.path.abspath(path))
    if any(len(os.fsencode(part)) > LONGEST_FILE_NAME for part in place.parts):
        raise _refusal(setting, path, REASONS[errno.ENAMETOOLONG])
    for folder in (place, *place.parents):
        try:
            mode = os.stat(folder).st_mode
        except FileNotFoundError:
            if os.path.islink(folder):
                raise _refusal(setting, path, f"{str(folder)!r} is a link to nothing") from None
            continue
        except OSError as error:
            raise _refusal(setting, path, REASONS.get(error.errno or 0, error.strerror or str(error))) from None
        if not stat.S_ISDIR(mode):
            raise _refusal(setting, path, "it is a file" if folder == place else f"it is below a file, {str(folder)!r}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _refusal(setting, path, f"{str(folder)!r} is not writable")
        return


def make_folder(setting: str, path: str) -> None:
    """
    Raises:
        ValueError: the system refuses it, for a reason that could not be seen before.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(setting, path, error.strerror or str(error)) from None


def _refusal(setting: str, path: str, reason: str) -> ValueError:
    return ValueError(f"{setting}={path!r} is not allowed: {reason}; name a folder that can be written")
