"""The last stage of a job that names a repository of the Hub: its export is pushed there, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transact.config.run import RunConfig
from transact.distributed.environment import environment_rank
from transact.errors import Failure
from transact.export.hub import Repository, check_push, push, reason_of
from transact.export.model_card import card_on_hub
from transact.files import write_json
from transact.rounds import Outline, Stage
from transact.runs.run_record import read_record
from transact.stages.job import Job

PUSHED = "hub.json"  # where the model is: repository, url, private, commit
FOLDERS = ("export", "gguf", "executorch")  # of the run, whose finished files are pushed, to the top of the repository
CARD = "README.md"


def check_push_to_hub(config: RunConfig, outline: Outline) -> None:
    """Check on rank 0 that the push at the end can be made, unless it is made already.

    Raises:
        ValueError: one line: what is in the way.
    """
    if config.export.hub is None or config.mode not in ("prune", "pretrain") or environment_rank() != 0:
        return
    if not _is_pushed(config, outline):
        check_push(Repository(name=config.export.hub, private=config.export.hub_private))


def _is_pushed(config: RunConfig, outline: Outline) -> bool:
    """Return whether the record lists all that is pushed, and the push, as finished."""
    stages = (read_record(Path(config.output_dir)) or {}).get("stages", {})
    last = [stages.get(each.name) for each in outline.stages if each.round is None]
    where = stages.get(Stage("hub").name, {}).get("settings", {}).get("repository")
    return where == config.export.hub and all(each and "damaged" not in each for each in last)


def push_to_hub(job: Job) -> None:
    """Push the export, its card and the files for other software, if the configuration names a repository (collective).

    It is pushed again where one of these files, or the repository, has changed.
    """
    name = job.config.export.hub
    if name is None:
        return
    repository, output = Repository(name=name, private=job.config.export.hub_private), job.path(PUSHED)
    folders = [job.path(folder) for folder in FOLDERS]
    found = job.folder.recorded(*folders) if job.group.is_main else {}
    digests: dict[str, str] = job.group.broadcast({file: each["sha256"] for file, (_, each) in found.items()})

    def work() -> None:
        pushed = job.group.on_main(lambda: _pushed(job, repository, sorted(digests)), may_be_left=True)
        if job.group.is_main:
            write_json(output, pushed)
        job.say(f"hub: {pushed['url']} ({'private' if pushed['private'] else 'public'}), commit {pushed['commit'][:8]}")

    settings = {"repository": name, "files": digests}
    job.stage(Stage("hub"), output, work, reads=folders, settings=settings)


def _pushed(job: Job, repository: Repository, names: list[str]) -> dict[str, Any]:
    """Push finished files of the run and return where they are.

    Raises:
        Failure: the Hub does not take them, now or at all.
    """
    export, files = job.path("export"), {Path(name).name: job.path(name) for name in names}
    size = sum(path.stat().st_size for path in files.values())
    job.say(f"hub: {len(files)} files, {size / 1e6:,.1f} MB, to {repository.name}")
    others = [Path(name).name for name in names if not job.path(name).is_relative_to(export)]
    card = card_on_hub((export / CARD).read_text(encoding="utf-8"), repository.name, others)
    try:
        return push(
            repository, files | {CARD: card}, f"{job.config.name}, by transact", lambda text: job.say(f"hub: {text}")
        )
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the export is there
        raise Failure(
            f"the push to export.hub={repository.name!r} failed ({reason_of(error)}); the export is "
            f"complete in {str(export)!r}, and the same command goes on with the push"
        ) from None
