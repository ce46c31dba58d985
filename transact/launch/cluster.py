"""Submit a run to SLURM: refuse a request that is known to be wrong, then queue one job, which requeues itself."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transact.config.compose import PACKAGE, to_dictionary
from transact.config.machines import LONGEST_SIGNAL_DELAY_SECONDS, SIGNAL_DELAY_SECONDS, LaunchConfig
from transact.config.run import RunConfig
from transact.config.setting import require
from transact.distributed.file_lock import exclusive
from transact.distributed.slurm import SlurmError, ask, job_states, live_jobs, require_slurm
from transact.engine.gram_memory import FLOAT32_BYTES
from transact.engine.memory import TRAINED_COPIES
from transact.errors import DONE, Stopped, fail, refuse
from transact.files import write_json
from transact.launch.executors import log_path, submit_to_slurm
from transact.launch.following import follow
from transact.runs.run_record import JOB_RECORD, LAYOUT, claim_run, read_config, read_record
from transact.runs.software import COPIED_REVISION, git_revision
from transact.stages.preflight import check
from transact.tracking.view import Lines

# File systems in memory are of one machine alone. A disk may be exported to the nodes under the same path, in which
# case the user sets launch.shared_folder=true.
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "overlay", "aufs")
ON_DISK = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")
PRIVATE_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def check_shared(folder: Path, hosts: set[str]) -> None:
    """Raise ValueError if the folder seems to be on this machine alone and the job may run on another one.

    Args:
        hosts: names of the machines on which the job may run.

    Raises:
        ValueError: the folder is on a local file system, and `hosts` has other machines.
    """
    others = sorted(host for host in hosts if host.split(".")[0] != socket.gethostname().split(".")[0])
    if not others:
        return
    kind, resolved = file_system(folder), os.path.realpath(folder)
    private = any(resolved == place or resolved.startswith(f"{place}/") for place in PRIVATE_PLACES)
    if kind in (*IN_MEMORY, *ON_DISK) or private:
        raise ValueError(
            f"output_dir={str(folder)!r} is on a file system of this machine ({kind}), which {others[0]} does not see: "
            "choose a folder that all nodes share (launch.shared_folder=true if this is one)"
        )


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is on, or will be on."""
    resolved = os.path.realpath(path)
    kinds: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode().decode("unicode_escape")  # mountinfo writes a space as \\040
        kinds[mount] = after.split()[0]
    inside = [mount for mount in kinds if mount == "/" or resolved == mount or resolved.startswith(f"{mount}/")]
    return kinds[max(inside, key=len)] if inside else "unknown"


POLL_SECONDS = 5.0  # between two queries about a job, each of which loads SLURM's controller


def run_on_slurm(config: RunConfig, *, is_sweep: bool) -> int:
    """Submit the job, print how to follow it, wait for its end if asked to, and return the exit code."""
    folder = Path(config.output_dir).absolute()
    config.output_dir = str(folder)
    try:
        require_slurm()
        check_request(config.launch, folder)
        _check_gpus(config)
        found = check(config, config.launch.num_ranks)[1]
        trained = [] if config.mode == "tokenize" else [each.geometry.parameters() for each in found.rounds]
        config.launch = with_signal_delay(config.launch, largest=max(trained, default=0))
        if is_sweep and _needs_nothing(config, folder):
            return DONE
        _refuse_live(folder)
        after = _to_wait_for(config.launch, folder.parent) if is_sweep else None
        job = _submit(config, folder, after)
    except (ValueError, OSError) as error:
        return refuse(error)
    log = log_path(folder / "logs", job, 0)
    print(
        f"submitted: job {job}\n  folder  {folder}\n  follow  tail -F {log}\n          "
        f"python -m transact status {folder}\n  cancel  scancel {job}",
        flush=True,
    )
    return _wait(job, folder, log) if config.launch.wait else DONE


def _check_gpus(config: RunConfig) -> None:
    """Raise ValueError where ranks need GPUs and the job asks for none: it would wait in the queue to be refused."""
    launch, needs = config.launch, config.engine.device == "cuda" and config.mode != "tokenize"
    # Options of sbatch have many ways to ask for GPUs, or for nodes that have them.
    may_ask = not needs or launch.gpus_per_node > 0 or bool(launch.options)
    wanted = "engine.device=cuda needs GPUs, one for each rank (or else launch.options that ask for them)"
    require("launch.gpus_per_node", launch.gpus_per_node, may_ask, wanted)


SLOW_BYTES_PER_SECOND = 100e6  # that a rank writes where a shared file system is busy; an assumption
STEP_SECONDS = 120  # for a step to end, or a piece of another stage


def with_signal_delay(launch: LaunchConfig, largest: int) -> LaunchConfig:
    """Return the settings with a time to save before the time limit, where none is given: half of the limit at most.

    Args:
        largest: parameters of the largest model that is trained.
    """
    if launch.signal_delay_seconds is not None:
        return launch
    bytes_of_a_rank = TRAINED_COPIES * FLOAT32_BYTES * largest / launch.num_ranks
    delay = max(SIGNAL_DELAY_SECONDS, round(STEP_SECONDS + 2 * bytes_of_a_rank / SLOW_BYTES_PER_SECOND))
    return replace(launch, signal_delay_seconds=min(delay, 30 * launch.timeout_minutes, LONGEST_SIGNAL_DELAY_SECONDS))


def check_request(launch: LaunchConfig, folder: Path) -> None:
    """Raise ValueError unless the cluster can run the job.

    Raises:
        ValueError: the cluster has no such partition, or not as many nodes, or they do not see the folder.
    """
    partitions: dict[str, int] = {}
    default = None
    for line in ask("sinfo", "-a", "-h", "-o", "%P|%D").splitlines():
        name, _, nodes = line.partition("|")
        default = name.rstrip("*") if name.endswith("*") else default
        partitions[name.rstrip("*")] = partitions.get(name.rstrip("*"), 0) + int(nodes)
    if launch.partition is None and default is None:
        return  # a plug-in of the cluster chooses the partition
    chosen = (launch.partition or default or "").split(",")  # SLURM takes whichever of several is free first
    for name in chosen:
        if name not in partitions:
            shown = ", ".join(sorted(partitions))
            raise ValueError(f"launch.partition={launch.partition!r} is not allowed: it must be one of {shown}")
    largest = max(partitions[name] for name in chosen)
    if launch.nodes > largest:
        raise ValueError(f"launch.nodes={launch.nodes} is not allowed: partition {','.join(chosen)} has {largest}")
    if not launch.shared_folder:
        hosts = set(ask("sinfo", "-h", "-N", "-p", ",".join(chosen), "-o", "%n").split())
        check_shared(folder, hosts)


def live_job(folder: Path) -> str | None:
    """Return the job that waits or runs for this folder, submitted by this command or by hand; None without one."""
    submitted, begun = read_record(folder, JOB_RECORD) or {}, read_record(folder) or {}
    jobs = (submitted.get("job"), begun.get("attempt", {}).get("job"))
    found = live_jobs(job for job in jobs if job is not None)
    return found[0] if found else None


def _refuse_live(folder: Path) -> None:
    live = live_job(folder)
    if live is not None:
        raise ValueError(
            f"output_dir={str(folder)!r} has a live job already ({live}): wait, `scancel {live}`, or choose another "
            "name="
        )


def _needs_nothing(config: RunConfig, folder: Path) -> bool:
    """Return whether a point of a sweep is running or finished already, and print which."""
    live = live_job(folder)
    if live is not None:
        print(f"{folder.name}: job {live} is at it already", flush=True)
    elif is_finished(folder) and _was_asked_this(config, folder):
        print(f"{folder.name}: finished already", flush=True)
    else:
        return False
    return True


def _was_asked_this(config: RunConfig, folder: Path) -> bool:
    """Return whether the finished run has measured and exported all that is asked for now."""
    before, now = read_config(folder) or {}, to_dictionary(config)
    return all(before.get(section) == now[section] for section in ("eval", "export"))


def is_finished(folder: Path) -> bool:
    return (read_record(folder) or {}).get("state") == "done"


def _to_wait_for(launch: LaunchConfig, sweep: Path) -> str | None:
    """Return the job to wait for, so that no more than `launch.max_running` points of the sweep run at a time.

    Every job waits for the one that is `launch.max_running` places before it, which makes as many lanes.
    """
    if launch.max_running is None:
        return None
    records = [read_record(path.parent, JOB_RECORD) for path in sweep.glob(f"*/{JOB_RECORD}")]
    live = live_jobs(sorted((record["job"] for record in records if record is not None), key=int))
    return live[-launch.max_running] if len(live) >= launch.max_running else None


def _submit(config: RunConfig, folder: Path, after: str | None) -> str:
    """Submit the job and return its id. A job that SLURM refuses leaves nothing behind."""
    is_new = not folder.exists()
    claim_run(folder, config.share_dir, "submitted")
    with exclusive(folder / "submit.lock"):
        _refuse_live(folder)  # another process may have submitted one meanwhile
        code = snapshot(folder)
        (folder / "logs").mkdir(exist_ok=True)
        try:
            job = submit_to_slurm(config, folder / "logs", code, after)
        except SlurmError:
            shutil.rmtree(folder if is_new and not (folder / JOB_RECORD).exists() else code)
            raise
        write_json(folder / JOB_RECORD, {"layout": LAYOUT, "job": job, "submitted": time.time(), "code": str(code)})
    return job


def snapshot(folder: Path) -> Path:
    """Copy the package, so that a requeued job runs what was submitted, and return the folder to import from."""
    code = folder / "code" / time.strftime("%Y%m%d-%H%M%S")
    package = code / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "demo_parent", "conf"))
    (package / COPIED_REVISION.name).write_text(git_revision() or "", encoding="utf-8")
    return code


def _wait(job: str, folder: Path, log: Path) -> int:
    asked, over = float("-inf"), False

    def is_over() -> bool:
        nonlocal asked, over
        if time.monotonic() - asked > POLL_SECONDS:
            asked, over = time.monotonic(), not live_jobs([job])
        return over

    try:
        follow(log, is_over, Lines(POLL_SECONDS))
    except KeyboardInterrupt:
        print(f"job {job} goes on; scancel {job} ends it", flush=True)
        raise Stopped("SIGINT") from None  # or a sweep would submit its next point
    except SlurmError as error:
        return fail(f"{error}; job {job} goes on")
    record = read_record(folder) or {}
    if record.get("attempt", {}).get("job") != job:
        record = {}  # of an earlier one: this has not begun
    return DONE if record.get("state") == "done" else _tell_failure(job, folder, record)


def _tell_failure(job: str, folder: Path, record: dict[str, Any]) -> int:
    state = job_states([job]).get(job, "gone")
    return fail(f"job {job} is {state}: {record.get('error') or 'it left no reason'}; logs in {folder / 'logs'}")
