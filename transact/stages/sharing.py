"""Results that all points of a sweep share: the first point that needs one computes it, and the others take it over.

A result is found under a digest of everything that it depends on, so that a point whose request differs in that
computes its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transact.config.run import RunConfig
from transact.distributed.file_lock import exclusive, held_by_one_run
from transact.files import (
    DamagedFile,
    copy_finished,
    file_digest,
    read_json,
    remove_flat,
    verify_file,
    write_json,
)
from transact.geometry import Geometry
from transact.models.identity import Identity
from transact.pruning.criteria import Criteria
from transact.rounds import Stage
from transact.runs.run_record import RECORD, SWEEP_RECORD, read_record
from transact.stages.job import Job
from transact.stages.texts import Texts

DIGESTS = "digests.json"  # beside a shared result: file name (empty where it is a file itself) -> size, SHA-256
SLICED = Stage("slice", 1).name  # once this stage is finished, a point needs no shared result any more
SHARED_GRAM = re.compile(r"gram-[0-9a-f]{20}")
GRAM_FILE = re.compile(r"layer_[0-9]{5}\.safetensors")
PACKAGE = Path(__file__).resolve().parents[1]
Work = Callable[[], dict[str, Any] | None]


def shared(job: Job, kind: str, identity: dict[str, Any], output: Path, work: Work) -> dict[str, Any] | None:
    """Make `output` by `work`, or take it over from another point of the sweep (collective).

    While one point computes, others that want the same wait for it; if it ends without a result, the next one computes.

    Args:
        identity: what the output depends on besides the model, the engine, the ranks and the code.

    Returns:
        What `work` returned; None if the output was taken over.

    Raises:
        Stopped: on every rank, when any was asked to stop while it waited.
    """
    if job.config.share_dir is None:
        return work()
    whole = _common_identity(job) | identity
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:20]
    finished = Path(job.config.share_dir) / f"{kind}-{digest}" / output.name
    with held_by_one_run(finished.parent.with_suffix(".lock"), job.group):
        if job.group.on_main(lambda: os.path.lexists(finished)):
            problem = job.group.on_main(lambda: take(finished, output, job.group.watchdog.progress))
            if problem is None:
                job.clock.take_over()
                job.say(f"{kind}: the same as in another point of the sweep, taken from {finished.parent.name}")
                return None
            job.say(f"{kind}: what the sweep shares is damaged ({problem}): it is made again")
        digests = work()
        job.group.barrier()
        job.group.on_main(lambda: share(output, finished, digests or {}, job.group.watchdog.progress))
        return digests


def take(finished: Path, output: Path, on_read: Callable[[], object] = lambda: None) -> str | None:
    """Take over a shared result if it is as it was written, else return what is wrong with it."""
    try:
        for name, entry in read_json(finished.with_name(DIGESTS)).items():
            verify_file(finished / name, entry, on_read)
        if foreign := _foreign(finished):
            return f"{str(finished / foreign)!r} was not made by a run"
    except (DamagedFile, OSError, AttributeError, KeyError, TypeError) as error:
        return str(error)
    copy_finished(finished, output)
    return None


def share(output: Path, finished: Path, known: Mapping[str, Any], on_read: Callable[[], object] = lambda: None) -> None:
    """Put a result where the other points of the sweep find it, in place of a damaged one.

    Where other files lie there that no run wrote, nothing is shared and each point makes its own.

    Args:
        known: size and SHA-256 of files by name, which need not be read again.
        on_read: as in `file_digest`.
    """
    if _foreign(finished):
        return
    if os.path.lexists(finished):
        remove_flat(finished)
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    digests = {
        path.name if output.is_dir() else "": known.get(path.name)
        or {"size": path.stat().st_size, "sha256": file_digest(path, on_read)}
        for path in files
    }
    write_json(finished.with_name(DIGESTS), digests)
    copy_finished(output, finished)


def _foreign(finished: Path) -> str | None:
    """Return a name in a shared folder that no run writes there, None if there is none."""
    if finished.is_symlink() or not finished.is_dir():
        return None
    ours = (path.name for path in finished.iterdir() if GRAM_FILE.fullmatch(path.name) and path.is_file())
    return next(iter(sorted({path.name for path in finished.iterdir()} - set(ours))), None)


def remove_shared_grams(share_dir: Path) -> None:
    """Remove the Gram matrices that points of a sweep share, once every point is sliced: they are large.

    Nothing is removed where the sweep's record lists no points, or where other files are among the matrices. A point
    that must be sliced again computes its own.
    """
    try:
        if not _all_sliced(share_dir.parent):
            return
        for folder in sorted(share_dir.glob("gram-*")):
            if SHARED_GRAM.fullmatch(folder.name) and _holds_grams_alone(folder):
                with exclusive(folder.with_suffix(".lock"), wait=False) as held:
                    if held:
                        remove_flat(folder / "gram")
                        remove_flat(folder)
    except (ValueError, OSError):  # a record is damaged, or another point removes the same files now
        return


def _all_sliced(sweep: Path) -> bool:
    listed = (read_record(sweep, SWEEP_RECORD) or {}).get("points", [])
    present = [path.name for path in sweep.iterdir() if (path / RECORD).exists()]
    records = [read_record(sweep / name) or {} for name in {*listed, *present}]
    return bool(listed) and all(SLICED in record.get("stages", {}) for record in records)


def _holds_grams_alone(folder: Path) -> bool:
    grams = folder / "gram"
    if folder.is_symlink() or grams.is_symlink() or {path.name for path in folder.iterdir()} != {grams.name, DIGESTS}:
        return False
    return all(GRAM_FILE.fullmatch(path.name) and path.is_file() for path in grams.iterdir())


def _common_identity(job: Job) -> dict[str, Any]:
    config = job.config
    engine = ("zero_stage", "dtype", "device", "attention", "kernels", "micro_batch_sequences")
    return {
        "engine": {name: getattr(config.engine, name) for name in engine},
        "world_size": job.group.world_size,
        "code": _code_digest(),
    }


def _code_digest() -> str:
    """Return a digest of this package's source; a revision would not show changes that are not committed."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def evaluation_identity(texts: Texts, parent: Identity) -> dict[str, Any]:
    """Return what the evaluation of the parent depends on.

    parent: the files of its record, which are the same wherever it lies.
    """
    return {"parent": parent, "text": texts.evaluation.name, "sequences": texts.evaluation.num_sequences}


def gram_identity(config: RunConfig, texts: Texts, parent: Identity) -> dict[str, Any]:
    """Return what the Gram matrices of the parent depend on.

    parent: as in `evaluation_identity`.
    """
    weights = {name: source.weight for name, source in config.data.train.sources.items()}
    return {
        "parent": parent,
        "text": texts.train.name,
        **({"weights": weights} if weights else {}),  # which say what of the text is reserved
        "seed": config.seed,
        "first": config.recover.validation_sequences,
        "sequences": config.prune.calibration_sequences,
    }


def summed_statistics(config: RunConfig, geometry: Geometry) -> dict[str, Any]:
    """Return what statistics of the parent depend on beside `gram_identity`. geometry: of the parent."""
    return {"statistics": [each.name for each in Criteria.of(config.prune.method).statistics(geometry)]}
