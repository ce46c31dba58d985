"""The folder of a run: its finished stages with their files and metrics, and how the folders of runs are found."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from transact.config.pruning import VARIANTS
from transact.errors import RankFailed
from transact.files import TEMPORARY_SUFFIX, file_digest, temporary_name, write_json
from transact.runs.run_record import (
    JOB_RECORD,
    LAYOUT,
    METRICS,
    OWN_CHECKPOINT,
    OWN_FILES,
    OWN_TEMPORARY,
    RECORD,
    listed,
    read_record,
)
from transact.runs.software import git_revision, package_versions
from transact.runs.verdict import end_attempt, ended_otherwise

CHECKPOINTS = "checkpoints"


def is_run(folder: Path) -> bool:
    """Return whether the folder holds a run, or a job that will make one."""
    return os.path.lexists(folder / RECORD) or os.path.lexists(folder / JOB_RECORD)


def point_folders(sweep: Path) -> list[Path]:
    """Return the runs right below a folder, by name: 9 comes before 10."""
    return sorted((path for path in sweep.glob("*") if is_run(path)), key=lambda path: _natural(path.name))


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(1, float(part), "") if turn % 2 else (0, 0.0, part) for turn, part in enumerate(parts)]


def variant_folders(folder: Path) -> list[Path]:
    """Return the folders of the run's variants by name: further recoveries of its cut."""
    return point_folders(folder / VARIANTS)


def run_folders(folder: Path) -> list[Path]:
    """Return the folder itself and its variants if it holds a run, else the points of the sweep in it.

    Raises:
        ValueError: there are none.
    """
    found = [folder, *variant_folders(folder)] if is_run(folder) else point_folders(folder)
    if not found:
        raise ValueError(f"{str(folder)!r} holds no run: neither {RECORD} nor {JOB_RECORD} is in it or right below it")
    return found


class RoundFolder:
    """The files and folders of one round by name; round 0 is the parent's."""

    def __init__(self, path: Path) -> None:
        self.initial = path / "initial"  # of mode=pretrain
        self.statistics = path / "statistics.safetensors"
        self.grams = path / "gram"
        self.split = path / "split.json"
        self.shapes = path / "shapes.json"
        self.shape_log = path / "shapes.jsonl"
        self.shape_base = temporary_name(path / "shape_base")  # the model that shapes are narrowed from
        self.selection = path / "selection.json"
        self.maps = path / "activation_maps.safetensors"
        self.sliced = path / "sliced"
        self.recovered = path / "recovered"
        self.mixture = path / "mixture.json"
        self.evaluation = path / "evaluation.json"

    def trial(self, number: int) -> Path:
        """Return the folder of one candidate of a split, to be measured.

        Each has a name of its own: a rank to which the file system shows an old view must not read another candidate.
        """
        return temporary_name(self.split.with_name(f"split_candidate_{number:03d}"))


class RunFolder:
    """`run.json` and the stages it lists. Rank 0 changes it; another rank records the end when rank 0 is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path / RECORD
        self.record: dict[str, Any] = {}
        self.attempt: float | None = None  # when it started, in unix seconds; rank 0 sends it to every rank
        self.on_read: Callable[[], object] = lambda: None  # called while finished files are digested
        self._writing = threading.Lock()
        self._others: set[Path] = set()  # files of somebody else where the present stage writes

    def open(self, world_size: int) -> None:
        """Begin the run or continue it, and remove what a killed attempt left half-written.

        Continuing counts as a restart unless the run had finished: a finished run may be started again for more work.

        Raises:
            DamagedFile: the record cannot be read.
        """
        self.record = read_record(self.path) or {"layout": LAYOUT}
        self.remove_leftovers()
        if not (self.path / METRICS).exists():  # moved away because it was damaged: it begins anew
            for entry in self._entries:
                entry["metrics_position"] = 0
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
        self.attempt = self.record["starts"][-1]

    def _write(self) -> None:
        with self._writing:  # the watchdog's thread records a failure
            ended = ended_otherwise(self.path, self.attempt)
            if ended is not None:  # a rank that was suspended may find the others gone
                raise RankFailed(ended)
            write_json(self.record_path, self.record)

    def note(self, **facts: Any) -> None:
        """Add facts to the record."""
        self.record |= facts
        self._write()

    @property
    def stages(self) -> dict[str, Any]:
        return self.record.setdefault("stages", {})

    def is_finished(self, stage: str, settings: dict[str, Any] | None = None) -> bool:
        """Return whether the stage is listed, with these settings if any are given, and not known to be damaged.

        Its files are compared when a stage is about to read them: `recorded`.
        """
        entry = self.stages.get(stage)
        return entry is not None and settings in (None, entry.get("settings")) and "damaged" not in entry

    def recorded(self, *paths: Path) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the finished files at or below these paths: name -> stage, and the size and SHA-256 recorded then."""
        wanted = [self._name(path) for path in paths if path.is_relative_to(self.path)]
        return {
            name: (stage, file)
            for stage, entry in self.stages.items()
            for name, file in entry["files"].items()
            if any(each == "." or name == each or name.startswith(f"{each}/") for each in wanted)
        }

    def supersede(self, *paths: Path) -> None:
        """Remove finished files at or below these paths, which only a repair would read. Their digests stay known."""
        gone = self.recorded(*paths)
        for name, (stage, file) in gone.items():
            del self.stages[stage]["files"][name]
            self.stages[stage].setdefault("removed", {})[name] = file
        if gone:
            # Known as this run's until they are gone: a kill may come, and a user's file may keep the folder.
            self.record["made"] = sorted({*self.record.get("made", []), *gone, *map(self._name, paths)})
            self._write()
        known = listed(self.record)  # no pattern of names: what a user put there since the last time stays
        for path in paths:
            if path.is_dir() and not path.is_symlink() and self._link_on_the_way(path) is None:
                _remove_folder(path, lambda file: self._name(file) in known)

    def superseded(self, *paths: Path) -> str | None:
        """Return the stage whose files at or below these paths were removed by `supersede`, None if there is none."""
        wanted = [f"{self._name(path)}/" for path in paths if path.is_relative_to(self.path)]
        removed = ((stage, name) for stage, entry in self.stages.items() for name in entry.get("removed", {}))
        return next((stage for stage, name in removed if any(name.startswith(each) for each in wanted)), None)

    def mark_damaged(self, stage: str, problem: str) -> None:
        """Mark a stage as no longer finished; those after it stay finished, unless its new output is another one."""
        self.stages[stage]["damaged"] = problem
        self._write()

    def announce(self, *paths: Path) -> None:
        """List names in run.json before anything is written there: after a crash they tell what this run has made.

        Raises:
            ValueError: something is there that this run did not make, or a folder of the path is a link.
        """
        known = listed(self.record)
        for path in paths:
            name = self._name(path)
            link = self._link_on_the_way(path)
            if link is not None:
                raise ValueError(
                    f"{str(link)!r} is a link, through which nothing is written: put a folder in its place"
                )
            is_known = name in known or any(each.startswith(f"{name}/") for each in known)
            if os.path.lexists(path) and not is_known:
                raise ValueError(
                    f"{str(path)!r} was not made by this run, which has to write there: move it away, and the same "
                    "command goes on"
                )
        self.record["made"] = sorted({*self.record.get("made", []), *map(self._name, paths)})
        self._write()

    def _link_on_the_way(self, path: Path) -> Path | None:
        """Return the first folder that is a link, of those between the run's folder and this path; None without one."""
        parts = path.relative_to(self.path).parts
        folders = (self.path.joinpath(*parts[:count]) for count in range(1, len(parts)))
        return next((each for each in folders if each.is_symlink()), None)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def remove(self, path: Path) -> None:
        """Remove an output as far as this run made it: other files in a folder stay, and so does a link's target.

        Raises:
            OSError: of the file system.
        """
        if self._link_on_the_way(path) is not None:
            return
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        prefix = f"{self._name(path)}/"
        recorded = {name for name in listed(self.record) if name.startswith(prefix)}
        if recorded:  # it was finished
            _remove_folder(path, lambda file: self._name(file) in recorded)
        else:
            own = next((files for folders, files in OWN_FILES if folders.fullmatch(path.name)), None)
            _remove_folder(path, lambda file: own is not None and own.fullmatch(file.name) is not None)

    def remove_checkpoints(self, round_name: str) -> None:
        """Remove the checkpoints of a round's recovery; what else is in their folder stays."""
        folder = self.path / CHECKPOINTS
        if folder.is_symlink() or not folder.is_dir() or CHECKPOINTS not in listed(self.record):
            return
        for each in sorted(folder.iterdir()):
            if OWN_CHECKPOINT.fullmatch(each.name) and each.name.startswith(f"{round_name}_"):
                self.remove(each)
        _remove_folder(folder, lambda file: False)
        self._forget_what_is_gone()
        self._write()

    def remove_leftovers(self) -> None:
        """Remove what a killed attempt left half-written: names that it had listed, and temporary files of records."""
        made = self.record.get("made", [])
        for name in made:
            if name.endswith(TEMPORARY_SUFFIX):
                self.remove(self.path / name)
        for each in self.path.iterdir():
            if OWN_TEMPORARY.fullmatch(each.name) and (each.is_symlink() or each.is_file()):
                each.unlink()
        if CHECKPOINTS in made and not (self.path / CHECKPOINTS).is_symlink():
            for each in (self.path / CHECKPOINTS).glob(f"*{TEMPORARY_SUFFIX}"):
                if OWN_CHECKPOINT.fullmatch(each.name):
                    self.remove(each)
        self._forget_what_is_gone()

    def _forget_what_is_gone(self) -> None:
        """Drop names that are free again, which others may take, and those of finished files, which stages list."""
        finished = {name for entry in self._entries for name in entry["files"]}
        finished |= {parent.as_posix() for name in finished for parent in PurePosixPath(name).parents}
        made = self.record.get("made", [])
        self.record["made"] = [each for each in made if each not in finished and os.path.lexists(self.path / each)]

    def begin(
        self, stage: str, outputs: Sequence[Path] = (), scratch: Sequence[Path] = (), order: Sequence[str] = ()
    ) -> bool:
        """Begin work on a stage; unless it is a repair, it and the stages after it are no longer finished.

        Args:
            outputs: files and folders that it makes.
            scratch: what else it makes for its own use, also what it keeps from one attempt to the next.
            order: of the run's stages, where more is asked of a finished run: an earlier one may be finished later.

        Returns:
            Whether it is a repair: made again because it is damaged, while the stages after it stay for now.

        Raises:
            ValueError: something that is not this run's is in the way.
        """
        names = list(self.stages)  # in the order in which they were finished
        is_repair = "damaged" in self.stages.get(stage, {}) and bool(names[names.index(stage) + 1 :])
        self.announce(*outputs, *map(temporary_name, outputs), *scratch)
        for output in outputs:
            if output.is_dir() or output.is_symlink():
                self.remove(output)
        for temporary in (*map(temporary_name, outputs), *scratch):
            if temporary.suffix == TEMPORARY_SUFFIX and os.path.lexists(temporary):
                self.remove(temporary)
                if os.path.lexists(temporary):
                    raise ValueError(f"{str(temporary)!r} holds files that this run did not make: move them away")
        self._others = {path for output in outputs if output.is_dir() for path in _files(output)}
        if not is_repair:
            place = order.index(stage) if stage in order else 0
            gone = names[names.index(stage) :] if stage in names else []
            self._drop({*gone, *order[place + 1 :]} & set(names) - set(order[:place]))
        self.record["stage"] = stage
        self._write()
        return is_repair

    def _drop(self, stages: Iterable[str]) -> None:
        """Drop stages from the finished ones; their files stay this run's."""
        files = [name for stage in stages for name in self.stages.pop(stage)["files"]]
        self.record["made"] = sorted({*self.record.get("made", []), *files})

    def finish(
        self,
        stage: str,
        outputs: Sequence[Path],
        seconds: float,
        metrics_position: int,
        digests: dict[str, Any],
        settings: dict[str, Any] | None = None,
        reads: Sequence[str] = (),
    ) -> bool:
        """List a stage as finished.

        Args:
            digests: of files, where the writer has computed them already (name -> size, sha256).
            settings: as in `is_finished`.
            reads: stages whose output it read.

        Returns:
            Whether it counts. A repaired stage does not if its files differ from the earlier ones and another stage has
            read those: it is then unfinished, as are the stages after it.
        """
        paths = [path for output in outputs for path in _files(output) if path not in self._others]
        files = {self._name(path): self._describe(path, digests) for path in paths}
        before = self.stages.get(stage)
        entry: dict[str, Any] = {"finished": time.time(), "seconds": seconds, "metrics_position": metrics_position}
        if before is not None:  # a repair, in which nothing was logged
            names = list(self.stages)
            made = before["files"] | before.get("removed", {})
            if not _is_same(made, files) and any(stage in each.get("reads", []) for each in self._entries):
                self._drop(names[names.index(stage) :])
                self._write()
                return False
            entry = {name: before[name] for name in entry}
        self.stages[stage] = entry | {"files": files, "reads": list(reads)}
        if settings is not None:
            self.stages[stage]["settings"] = settings
        self._forget_what_is_gone()
        self._write()
        return True

    @property
    def _entries(self) -> Iterable[dict[str, Any]]:
        return self.stages.values()

    def _describe(self, path: Path, digests: dict[str, Any]) -> dict[str, Any]:
        return digests.get(path.name) or {"size": path.stat().st_size, "sha256": file_digest(path, self.on_read)}

    def metrics_position(self) -> int:
        """Return the number of bytes of metrics.jsonl that belong to finished stages."""
        return max((entry["metrics_position"] for entry in self.stages.values()), default=0)

    def end(self, state: str, error: str | None = None) -> bool:
        """Record how this attempt ended. Any rank may; the first verdict counts. Returns whether this was the first."""
        with self._writing:
            is_first = end_attempt(self.path, self.attempt, state, error)
            if is_first:
                self.record |= {"state": state, "error": error}
            return is_first


def _files(output: Path) -> list[Path]:
    """Return the files of an output, which is a file or a folder."""
    if not output.is_dir():
        return [output] if output.exists() else []
    return sorted(path for path in output.rglob("*") if path.is_file())


def _is_same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Return whether the files are the same, apart from the model card: it says how long the work took."""
    one, other = ({name: each for name, each in files.items() if not name.endswith(".md")} for files in (before, after))
    return one == other


def _remove_folder(folder: Path, is_own: Callable[[Path], bool]) -> None:
    """Remove our own files in a folder, and the folder if it is empty then. Never goes deeper, and follows no link."""
    for path in folder.iterdir():
        if is_own(path) and (path.is_symlink() or path.is_file()):
            path.unlink()
    with suppress(OSError):  # somebody else's files are in it
        folder.rmdir()
