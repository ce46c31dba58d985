"""The stages after the last round: tasks, export, files for other software, latencies, the Hub, and result.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transact.export.k_quants import float16_file
from transact.files import temporary_name
from transact.rounds import Round, Stage
from transact.stages.efficiency import measure_efficiency
from transact.stages.export import export, export_executorch, export_gguf
from transact.stages.hub import push_to_hub
from transact.stages.job import Job
from transact.stages.summary import executorch_path, gguf_path, summarise, with_repository, write_result
from transact.stages.tasks import evaluate_side_by_side, settings_of_tasks
from transact.stages.texts import Texts


def finish(job: Job, texts: Texts, model_folder: Path, parent: Path, rounds: Sequence[Round]) -> dict[str, Any]:
    """Run the stages after the last round, write result.json and return its contents."""
    if rounds and job.config.eval.has_more():
        compared, both = job.path("comparison.json"), {"dense": parent, "pruned": model_folder}
        settings, measured = settings_of_tasks(job.config.eval), job.path("measured.json")
        job.stage(
            Stage("tasks"),
            compared,
            lambda: evaluate_side_by_side(job, texts, both, compared, measured),
            reads=[model_folder],
            scratch=[measured],
            settings=settings,
        )
    output = job.path("export")
    summary = job.group.broadcast(summarise(job, rounds) if job.group.is_main else None)
    job.stage(
        Stage("export"),
        output,
        lambda: export(job, texts, model_folder, parent, summary, output),
        reads=[model_folder],
    )
    if job.config.export.gguf != "none":
        gguf = gguf_path(job)
        job.stage(
            Stage(f"gguf_{job.config.export.gguf}"),
            gguf,
            lambda: export_gguf(job, texts, output, gguf),
            reads=[output],
            scratch=[float16_file(temporary_name(gguf))],
        )
    if job.config.export.executorch != "none":
        program = executorch_path(job)
        job.stage(
            Stage(f"executorch_{job.config.export.executorch_kind}"),
            program,
            lambda: export_executorch(job, texts, output, program),
            reads=[output],
        )
    if rounds and job.config.eval.efficiency.measured:
        measured = job.path("efficiency.json")
        settings = asdict(job.config.eval.efficiency)
        job.stage(
            Stage("efficiency"),
            measured,
            lambda: measure_efficiency(job, texts, parent, output, measured),
            reads=[output],
            settings=settings,
        )
    result = write_result(job, rounds) if job.group.is_main else None  # before the push: that may fail
    push_to_hub(job)
    job.warn_of_damage()
    return job.group.broadcast(with_repository(job, result) if result is not None else None)
