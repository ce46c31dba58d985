"""report.html of a run, or of a sweep and of every run in it, from their files alone.

python -m transact report FOLDER [--watch]
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from transact.config.setting import require
from transact.errors import DONE, Parser, fail, refuse
from transact.runs.run_folder import run_folders
from transact.runs.run_record import RECORD, read_config, read_record
from transact.runs.verdict import LIVE
from transact.tracking.report.run_files import read_values
from transact.tracking.report.writing import write_pages

SECONDS = 30.0


def main() -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="transact report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run, or of a sweep")
    parser.add_argument("--watch", action="store_true", help="write it again and again, until all runs have ended")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"between two times (default: {SECONDS:g})")
    given = parser.parse_args()
    try:
        require("--seconds", given.seconds, given.seconds > 0, "more than 0")
        check_records(given.folder)
        is_last = not (given.watch and is_live(given.folder))  # asked first, so that the last page shows the end
        print(write_pages(given.folder)[-1], flush=True)
        return DONE if is_last else watch(given.folder, given.seconds)
    except ValueError as error:
        return refuse(error)
    except OSError as error:
        return fail(error)


def check_records(folder: Path) -> None:
    """Raise DamagedFile unless the record and the configuration of every run can be read.

    A page shows what it can of other damaged files, but it must say what the run is and how it stands.

    Raises:
        DamagedFile: one of them cannot, of the run or of a point of the sweep.
    """
    for each in run_folders(folder):
        read_record(each)
        read_config(each)


def watch(folder: Path, seconds: float) -> int:
    """Write the pages again until no run is going on, or Ctrl-C. A write that fails is tried again."""
    is_last = False
    with suppress(KeyboardInterrupt):
        while not is_last:
            time.sleep(seconds)
            is_last = not is_live(folder)
            try:
                write_pages(folder)
            except OSError as error:
                is_last = False
                fail(error)
    return DONE


def is_live(folder: Path) -> bool:
    """Return whether a run in the folder is submitted, starting or running."""
    return any(read_values(each / RECORD).get("state", "submitted") in LIVE for each in run_folders(folder))
