"""The records of a run folder: read and checked, created before any other file, and asked whether a folder is ours."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from transact.files import DamagedFile, flush_to_disk, read_json, write_json
from transact.runs.metrics import read_metrics

RECORD = "run.json"
JOB_RECORD = "job.json"  # the SLURM job that was submitted last
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SWEEP_RECORD = "sweep.json"
ESTIMATE = "estimate.json"  # of mode=estimate
LAYOUT = 3  # of a run folder; another one is refused instead of being half understood
WAY_OUT = "nothing was changed: restore the file from a copy, or choose another name="
ELSEWHERE = "choose another name= or output_dir="
MAX_SHOWN = 3

ROUND = re.compile(r"round_\d{2,}")
# What a run writes into its folder. It lists these in the record before it makes them:
OWN_NAMES = re.compile(
    r"round_\d{2,}/evaluation\.json|(comparison|measured|efficiency|hub|result)\.json|checkpoints|export|gguf|executorch|round_\d{2,}"
    r"|round_\d{2,}/(initial|gram|sliced|recovered|(statistics|activation_maps)\.safetensors|(selection|split|shapes|mixture)\.json"
    r"|shapes\.jsonl)"
)
# These are the run's own as soon as the folder is:
OWN_FROM_THE_START = re.compile(
    r"(run|job|sweep)\.json|estimate\.(json|txt)|config\.yaml|metrics\.jsonl|report\.(html|lock)"
    r"|(run|attempt|submit)\.lock|logs|stacks|profile|code|wandb|shared"
)
FILES = re.compile(r".*\.(json|jsonl|yaml|html|lock|txt|safetensors)")  # of both kinds, the names of files
# Names of the files that a run writes into each kind of folder; other files in it are somebody else's, and stay. After
# a killed attempt nothing but the name tells them apart.
_MODEL = (
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json(\.tmp)?|(generation_)?config\.json(\.tmp)?"
    r"|(vocab|added_tokens|special_tokens_map)\.json|tokenizer(_config)?\.json(\.tmp)?|tokenizer\.model|merges\.txt"
    r"|chat_template\.jinja|(layerwise|own_rotation)_llama\.py"
)
_EXPORT = rf"{_MODEL}|README\.md(\.tmp)?|(LICEN[SC]E|NOTICE|USE_POLICY).*"
_GRAM = r"layer_\d{5}\.safetensors"
_CHECKPOINT = r"state-\d{5}-of-\d{5}\.safetensors|manifest\.json(\.tmp)?"
OWN_FILES = (
    (re.compile(r"export(\.tmp)?"), re.compile(_EXPORT)),
    (re.compile(r"gram(\.tmp)?"), re.compile(_GRAM)),
    (re.compile(r"round_\d{2,}_step_\d{8}(\.tmp|\.damaged)*"), re.compile(_CHECKPOINT)),
    (
        re.compile(r"(initial|sliced|recovered)(\.tmp)?|(split_candidate(_\d{3,})?|shape_base)(\.tmp)*"),
        re.compile(_MODEL),
    ),
)
OWN_TEMPORARY = re.compile(
    r"(run|job|result|comparison|measured|efficiency|hub|estimate)\.json\.tmp|(config\.yaml|estimate\.txt)\.tmp|report\.html\.\d+\.\d+\.tmp"
)
OWN_CHECKPOINT = re.compile(r"round_\d{2,}_step_\d{8}(\.tmp|\.damaged)*")


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any] | None:
    """Return run.json, or another record, of a run's folder; None where there is none.

    Raises:
        DamagedFile: it cannot be read, or is of another layout; one line that says what to do.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    try:
        record = read_json(path)
    except DamagedFile as damaged:
        raise DamagedFile(path, f"{damaged.problem}; {WAY_OUT}") from None
    except OSError as error:  # a folder, a loop of links, a file of another user
        raise DamagedFile(path, f"cannot be read ({error.strerror}); {WAY_OUT}") from None
    if isinstance(record, dict) and record.get("layout") != LAYOUT:
        found = record.get("layout", "none")
        raise DamagedFile(
            path,
            f"is of another layout of run folders ({found}, this version of transact writes {LAYOUT}), or not of "
            f"transact: go on with the version that wrote it, or {ELSEWHERE}",
        )
    if not isinstance(record, dict) or not all(is_valid(record) for is_valid in RULES[name]):
        raise DamagedFile(path, f"is not what transact wrote; {WAY_OUT}")
    return record


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return config.yaml of a run's folder; None where there is none.

    Raises:
        DamagedFile: it cannot be read.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror}); {WAY_OUT}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DamagedFile(path, f"is not YAML; {WAY_OUT}") from None
    if not isinstance(found, dict) or type(_tokens(found)) is not int:
        raise DamagedFile(path, f"is not what transact wrote (it has {path.stat().st_size} bytes); {WAY_OUT}")
    return found


def _tokens(config: dict[str, Any]) -> Any:
    recover = config.get("recover")
    return recover.get("tokens") if isinstance(recover, dict) else None


def is_inside(name: object) -> bool:
    """Return whether a name is a normal relative path, which cannot lead out of the run's folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and ".." not in parts and PurePosixPath(name).as_posix() == name != "."


def _is_stage(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("files"), dict)
        and isinstance(entry.get("seconds"), int | float)
        and type(entry.get("metrics_position")) is int
        and isinstance(entry.get("removed", {}), dict)
        and all(
            is_inside(name) and _is_file(file) for name, file in (entry["files"] | entry.get("removed", {})).items()
        )
    )


def _is_file(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("size")) is int and isinstance(entry.get("sha256"), str)


def _has_stages(record: dict[str, Any]) -> bool:
    stages = record.get("stages", {})
    return isinstance(stages, dict) and all(_is_stage(entry) for entry in stages.values())


def _has_attempt(record: dict[str, Any]) -> bool:
    attempt = record.get("attempt")
    return attempt is None or (isinstance(attempt, dict) and isinstance(attempt.get("job"), str))


def _has_run(record: dict[str, Any]) -> bool:
    """Return whether the fields that `RunFolder.open` writes are valid, or not there yet."""
    if "run_id" not in record:
        return True
    counts = type(record.get("restarts")) is int and isinstance(record.get("starts", []), list)
    return counts and isinstance(record["run_id"], str) and isinstance(record.get("stages"), dict)


def _has_engine(record: dict[str, Any]) -> bool:
    """Return whether the settings that the run chose are valid, or not there."""
    engine = record.get("engine")
    if not isinstance(engine, dict):
        return engine is None
    size = engine.get("micro_batch_sequences")
    return type(size) is int and size > 0 and type(engine.get("activation_checkpointing")) is bool


STATES = ("submitted", "starting", "running", "stopped", "failed", "diverged", "done")
RULES: dict[str, tuple[Callable[[dict[str, Any]], bool], ...]] = {
    RECORD: (
        lambda record: record.get("state") in STATES,
        lambda record: isinstance(record.get("made", []), list) and all(map(is_inside, record.get("made", []))),
        lambda record: isinstance(record.get("interruptions", {}), dict),
        lambda record: isinstance(record.get("stage"), str | None),
        _has_stages,
        _has_attempt,
        _has_run,
        _has_engine,
    ),
    JOB_RECORD: (lambda record: isinstance(record.get("job"), str) and record["job"].isdecimal(),),
    SWEEP_RECORD: (
        lambda record: isinstance(record.get("points", []), list) and all(map(is_inside, record.get("points", []))),
    ),
}


def check_folder(given: str, *, of_sweep: bool = False) -> None:
    """Raise ValueError unless the folder may be used: it is new, empty or one of ours, and no link leads out of it.

    Args:
        given: output_dir.
        of_sweep: it will hold runs, and is no run itself.

    Raises:
        ValueError: one line.
    """
    where = f"output_dir={given!r}"
    if not given.strip():
        raise ValueError(f"{where} names no folder: {ELSEWHERE}")
    folder = Path(os.path.realpath(given))  # "new/../mine" is "mine", also where "new" does not exist
    if not folder.is_dir():
        return
    names = _entries(folder)
    if is_unclaimed(folder):
        return
    record = read_record(folder, SWEEP_RECORD if of_sweep else RECORD)
    if record is None and (of_sweep or read_record(folder, JOB_RECORD) is None):
        shown = ", ".join(map(repr, names[:MAX_SHOWN])) + (" and more" if len(names) > MAX_SHOWN else "")
        what = "sweep" if of_sweep else "run"
        raise ValueError(f"{where} is not empty and holds no {what} of transact ({shown}): {ELSEWHERE}")
    _check_names(where, folder, names, record or {})


def _check_names(where: str, folder: Path, names: Iterable[str], record: dict[str, Any]) -> None:
    """Raise ValueError unless all that stands where the run writes is of the right kind and this run's."""
    files = {name for entry in record.get("stages", {}).values() for name in entry["files"]}
    made = files | set(record.get("made", []))
    made |= {parent.as_posix() for name in made for parent in PurePosixPath(name).parents}
    inside = [f"{name}/{each}" for name in names if ROUND.fullmatch(name) for each in _entries_if_folder(folder / name)]
    for name in [*names, *inside]:
        is_listed_first, path = OWN_NAMES.fullmatch(name), folder / name
        if not is_listed_first and not OWN_FROM_THE_START.fullmatch(name):
            continue
        problem = None
        if path.is_symlink() and "/" not in name:  # links further down are replaced
            problem = "is a link, and a run writes through none: put what it leads to in its place"
        elif is_listed_first and name not in made:
            problem = "was not made by this run, which would write there: move it away"
        elif (name in files or FILES.fullmatch(name)) and path.is_dir() and not path.is_symlink() and _entries(path):
            problem = "is a folder, where a run has a file: move it away"
        if problem is not None:
            raise ValueError(f"{where}: {name!r} in it {problem}, or {ELSEWHERE}")


def _entries_if_folder(path: Path) -> list[str]:
    return _entries(path) if path.is_dir() and not path.is_symlink() else []


def _entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def is_unclaimed(folder: Path) -> bool:
    """Return whether the folder holds nothing but what mode=estimate wrote, or a record that a kill left empty."""
    names = _entries(folder)
    if not names or (len(names) == 1 and names[0] in RULES and (folder / names[0]).lstat().st_size == 0):
        return True
    if not set(names) <= {ESTIMATE, "estimate.txt"}:
        return False
    try:
        estimate = read_json(folder / ESTIMATE)
    except (DamagedFile, OSError):
        return False
    return isinstance(estimate, dict) and estimate.get("layout") == LAYOUT


def claim(folder: Path, state: str, name: str = RECORD) -> None:
    """Create the record that makes the folder a run's or a sweep's, before any other file; do nothing where it is one.

    Raises:
        ValueError: something else has been put there meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[str, Any] = {"layout": LAYOUT}
    if name == RECORD:  # all fields that `transact status` reads
        first |= {"state": state, "error": None, "stage": None, "restarts": 0, "stages": {}}
    if os.path.lexists(folder / name):
        if _entries(folder) == [name] and is_unclaimed(folder):  # a process was killed before it wrote the record
            write_json(folder / name, first)
        return
    if not is_unclaimed(folder) and (name == SWEEP_RECORD or read_record(folder, JOB_RECORD) is None):
        raise ValueError(f"{str(folder)!r} is not empty and holds no {name} of transact: {ELSEWHERE}")
    with suppress(FileExistsError), (folder / name).open("x", encoding="utf-8") as file:  # two may claim it at once
        file.write(json.dumps(first, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    flush_to_disk(folder)


def check_metrics(folder: Path) -> None:
    """Raise DamagedFile unless metrics.jsonl, where it exists, still holds what finished stages logged.

    Raises:
        DamagedFile: it is too short, or cannot be read.
    """
    path, stages = folder / METRICS, (read_record(folder) or {}).get("stages", {})
    logged = max((entry["metrics_position"] for entry in stages.values()), default=0)
    if not logged or not os.path.lexists(path):
        return
    way_out = "restore it from a copy, or move it away: the log then begins anew"
    try:
        size = path.stat().st_size
        read_metrics(path)
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition(": ")[2]
        raise DamagedFile(path, f"cannot be read ({reason}): {way_out}") from None
    if size < logged:
        raise DamagedFile(path, f"has {size} of the {logged} bytes that finished stages logged: {way_out}")


def claim_run(folder: Path, share_dir: str | None, state: str) -> None:
    """Create the record that makes the folder a run's, and a sweep's in the one above if it is a point of one.

    Raises:
        ValueError, OSError: as `claim`.
    """
    if share_dir is not None:
        claim(Path(share_dir).parent, state, SWEEP_RECORD)
    claim(folder, state)


def missing_folders(folder: Path) -> list[Path]:
    """Return the folder and those above it that do not exist, the deepest first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def unclaim(folder: Path, made: Iterable[Path], job_id: str) -> None:
    """Remove the record and the logs of a run that was refused before it began, and the folders that were made for it.

    Where another job has logs there, of a later command, the record stays: it may be that one's.

    Args:
        folder: without a record before it was claimed for that run.
        made: as `missing_folders` said before.
        job_id: that the names of its logs begin with.
    """
    record = read_record(folder)
    if record is None or "run_id" in record:
        return
    logs = folder / "logs"
    for each in logs.glob(f"{job_id}_*"):
        each.unlink(missing_ok=True)
    try:
        logs.rmdir()
    except OSError:
        return
    (folder / RECORD).unlink(missing_ok=True)
    (folder / "run.lock").unlink(missing_ok=True)
    with suppress(OSError):
        for path in made:
            path.rmdir()


def note_points(share_dir: str, names: list[str]) -> None:
    """Add points to the record of a sweep, beside those of earlier commands; do nothing if none claimed its folder.

    Raises:
        DamagedFile, OSError: the record cannot be read or written.
    """
    sweep = Path(share_dir).parent
    record = read_record(sweep, SWEEP_RECORD)
    if record is None:
        return
    points = sorted({*record.get("points", []), *names})
    if points != record.get("points"):
        write_json(sweep / SWEEP_RECORD, record | {"points": points})


def check_run_folder(given: str, share_dir: str | None) -> None:
    """Check the folders that `claim_run` would claim, as `check_folder` does; nothing is written.

    Raises:
        ValueError: one line.
    """
    if share_dir is not None:
        check_folder(os.path.dirname(share_dir) or ".", of_sweep=True)
    check_folder(given)


def listed(record: dict[str, Any]) -> set[str]:
    """Return the names, relative to the run's folder, of all that the run has made or was about to make."""
    finished = {name for entry in record.get("stages", {}).values() for name in entry["files"]}
    return finished | set(record.get("made", []))
