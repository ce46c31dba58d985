"""The last stage of a job that names a repository of the Hub: its export is pushed there, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transact.config.run import RunConfig
from transact.distributed.environment import environment_rank
from transact.errors import Failure
from transact.export.hub import Repository, check_push, is_final, push, reason_of
from transact.export.model_card import card_on_hub
from transact.files import write_json
from transact.rounds import Stage
from transact.runs.run_record import read_config, read_record
from transact.stages.job import Job

PUSHED = "hub.json"  # where the model is: repository, url, private, commit
FOLDERS = ("export", "gguf", "executorch")  # of the run, whose finished files are pushed, to the top of the repository
CARD = "README.md"


def check_push_to_hub(config: RunConfig) -> None:
    """Check on rank 0 that the push at the end can be made, unless it was checked when this run began, or is made.

    A run that goes on does not ask again: a Hub that is silent for a minute, or a node without a network, must not end
    what the push, hours later, may well do.

    Raises:
        ValueError: one line: what is in the way.
    """
    name, folder = config.export.hub, Path(config.output_dir)
    if name is None or config.mode not in ("prune", "pretrain") or environment_rank() != 0:
        return
    repository = Repository(name=name, private=config.export.hub_private)
    if config.recover.variant is not None and _repository_of(folder.parent.parent) == name:
        raise repository.refusal("the run that this is a variant of is pushed there, and would be replaced")
    has_begun = bool((read_record(folder) or {}).get("stages"))
    if not (has_begun and _repository_of(folder) == name):
        check_push(repository)


def _repository_of(folder: Path) -> str | None:
    """Return the repository that a run was last asked to push to, None where there is none, or no run."""
    found: str | None = ((read_config(folder) or {}).get("export") or {}).get("hub")
    return found


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
    # Of stages that this command makes: nobody would make another one's files again, were they gone.
    made = {stage.name for stage in job.outline.stages}
    digests: dict[str, str] = job.group.broadcast(
        {file: each["sha256"] for file, (stage, each) in found.items() if stage in made}
    )

    def work() -> None:
        pushed = job.group.on_main(lambda: _pushed(job, repository, sorted(digests)), may_be_left=True)
        if job.group.is_main:
            write_json(output, pushed)
        job.say(f"hub: {pushed['url']} ({'private' if pushed['private'] else 'public'}), commit {pushed['commit'][:8]}")

    settings = {"repository": name, "private": repository.private, "files": digests}
    job.stage(Stage("hub"), output, work, reads=[job.path(file) for file in digests], settings=settings)


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
        goes_on = "once that is settled, " if is_final(error) else ""
        raise Failure(
            f"the push to export.hub={repository.name!r} failed ({reason_of(error)}); the export is "
            f"complete in {str(export)!r}, and {goes_on}the same command goes on with the push"
        ) from None
