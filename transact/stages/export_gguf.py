"""Export for llama.cpp: one file, from the exported folder."""

from __future__ import annotations

from pathlib import Path

from transact.export.gguf import write_gguf
from transact.files import publish, temporary_name
from transact.models.folder import geometry_of
from transact.prune.targets import Q4_BLOCK
from transact.stages.job import Job


def export_gguf(job: Job, folder: Path, output: Path) -> None:
    """Write the file; rank 0 alone works, a tensor at a time."""
    kind, geometry = job.config.export.gguf, geometry_of(folder)

    def write() -> list[str]:
        temporary = temporary_name(output)
        with job.progress("gguf", geometry.parameters(), unit="weights") as bar:
            in_float16 = write_gguf(folder, temporary, kind, job.config.name, bar.advance)
        publish(temporary, output)
        return in_float16

    in_float16 = job.group.on_main(write, may_be_left=True)  # hours, of a large model
    job.say(f"gguf: {output}")
    if in_float16:
        job.say(
            f"gguf: {len(in_float16)} weights are f16 instead of {kind}, such as {in_float16[0]}: their rows do not "
            f"divide into blocks of {Q4_BLOCK}; prune.target=llama_cpp, in a new run, cuts to dimensions that do"
        )
