"""Export for llama.cpp: one file, from the exported folder."""

from __future__ import annotations

from pathlib import Path

from transact.exporting.gguf_file import write_gguf
from transact.files import publish, temporary_name
from transact.stages.job import Job


def export_gguf(job: Job, folder: Path, output: Path) -> None:
    """Write the file; rank 0 alone works, a tensor at a time."""

    def write() -> None:
        temporary = temporary_name(output)
        write_gguf(folder, temporary, job.config.export.gguf, job.config.name)
        publish(temporary, output)

    job.group.on_main(write, may_be_left=True)  # hours, of a large model
    job.say(f"gguf: {output}")
