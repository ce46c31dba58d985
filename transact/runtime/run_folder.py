"""The folder of a run: which stages are finished, with which files, and where metrics stood; and where runs are."""

from __future__ import annotations

import platform
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transact.files import TEMPORARY_SUFFIX, file_digest, read_json, write_json

RECORD = "run.json"
JOB_RECORD = "job.json"  # the job of SLURM that was submitted last
COPIED_REVISION = Path(__file__).resolve().parents[1] / "REVISION"  # in the copy of the code that a cluster job runs
PACKAGES = ("transact", "torch", "transformers", "deepspeed", "datasets", "hydra-core", "wandb", "submitit")


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_revision() -> str | None:
    """The revision of the checkout that this code runs from, or was copied from; None in an installed package."""
    if COPIED_REVISION.is_file():
        return COPIED_REVISION.read_text(encoding="utf-8").strip() or None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def is_run(folder: Path) -> bool:
    """Whether it holds a run, or a job that will make one."""
    return (folder / RECORD).is_file() or (folder / JOB_RECORD).is_file()


def point_folders(sweep: Path) -> list[Path]:
    """The runs right below a folder, by name: 9 comes before 10."""
    return sorted((path for path in sweep.glob("*") if is_run(path)), key=lambda path: _natural(path.name))


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(1, float(part), "") if turn % 2 else (0, 0.0, part) for turn, part in enumerate(parts)]


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds a run, else the points of the sweep in it.

    Raises:
        ValueError: there are none.
    """
    found = [folder] if is_run(folder) else point_folders(folder)
    if not found:
        raise ValueError(f"{str(folder)!r} holds no run: neither {RECORD} nor {JOB_RECORD} is in it or right below it")
    return found


class RunFolder:
    """`run.json` and the stages it lists. Only rank 0 changes it; the others read what rank 0 tells them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path / RECORD
        self.record: dict[str, Any] = {}
        self._writing = threading.Lock()

    def open(self, world_size: int) -> None:
        """Begin or continue: counts a restart when the folder already holds a run that did not come to its end. (More
        may be asked of a finished one.)"""
        self.record = read_json(self.record_path) if self.record_path.is_file() else {}
        if "run_id" in self.record:
            was_done = self.record["state"] == "done" or self.record.get("attempt", {}).get("done", False)
            self.record["restarts"] += not was_done
        else:  # new, or a job of SLURM has only counted its attempts so far
            self.record |= {"run_id": secrets.token_hex(8), "restarts": 0, "stages": {}}
        self.record |= {
            "state": "running",
            "error": None,
            "stage": None,
            "versions": package_versions(),
            "git_revision": git_revision(),
            "world_size": world_size,
            "starts": [*self.record.get("starts", []), time.time()],  # unix seconds of every attempt
        }
        self._write()

    def _write(self) -> None:
        with self._writing:  # the watchdog's thread records a failure
            write_json(self.record_path, self.record)

    def note(self, **facts: Any) -> None:
        """Add facts to the record."""
        self.record |= facts
        self._write()

    @property
    def stages(self) -> dict[str, Any]:
        return self.record["stages"]

    def is_finished(self, stage: str, settings: dict[str, Any] | None = None) -> bool:
        """Whether the stage is listed, was done with these settings if any are given, and every file that it wrote is
        still there in full."""
        entry = self.stages.get(stage)
        if entry is not None and settings is not None and entry.get("settings") != settings:
            return False
        return entry is not None and all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == file["size"]
            for name, file in entry["files"].items()
        )

    def remove_leftovers(self) -> None:
        """What an attempt that was killed left half-written."""
        for path in sorted(self.path.rglob(f"*{TEMPORARY_SUFFIX}")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def begin(self, stage: str, order: Sequence[str] = ()) -> None:
        """Work on a stage begins; what was made of an earlier output of it is no longer finished.

        order: of the run's stages, where more may be asked of a finished run, so that an earlier one was finished
            later.
        """
        names = list(self.stages)  # in the order in which they were finished
        place = order.index(stage) if stage in order else 0
        gone = names[names.index(stage) :] if stage in names else []
        for name in {*gone, *order[place + 1 :]} & set(names) - set(order[:place]):
            del self.stages[name]
        self.record["stage"] = stage
        self._write()

    def finish(
        self,
        stage: str,
        output: Path,
        seconds: float,
        metrics_position: int,
        digests: dict[str, Any],
        settings: dict[str, Any] | None = None,
    ) -> None:
        """List a stage as finished; `digests` are those that its writer computed already (name -> size, sha256).
        settings: as in `is_finished`."""
        self.stages[stage] = {
            "finished": time.time(),
            "seconds": seconds,
            "metrics_position": metrics_position,
            "files": {str(path.relative_to(self.path)): self._describe(path, digests) for path in _files(output)},
        }
        if settings is not None:
            self.stages[stage]["settings"] = settings
        self._write()

    def _describe(self, path: Path, digests: dict[str, Any]) -> dict[str, Any]:
        return digests.get(path.name) or {"size": path.stat().st_size, "sha256": file_digest(path)}

    def metrics_position(self) -> int:
        """Bytes of metrics.jsonl that belong to finished stages."""
        return max((entry["metrics_position"] for entry in self.stages.values()), default=0)

    def end(self, state: str, error: str | None = None) -> None:
        self.record |= {"state": state, "error": error}
        self._write()


def _files(output: Path) -> list[Path]:
    return sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]


def was_stopped(folder: Path, since: float) -> bool:
    """Whether the run in this folder ended because it was asked to.

    Args:
        since: unix seconds; what run.json says from before that is of another attempt.
    """
    record = folder / RECORD
    return record.is_file() and record.stat().st_mtime >= since and read_json(record)["state"] == "stopped"
