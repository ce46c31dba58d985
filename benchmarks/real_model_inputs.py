"""The texts and tasks that a real model is measured on, from folders that are given: the project holds none."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from transact.config.inputs import TextConfig
from transact.data.text import check_text
from transact.errors import Refusal
from transact.files import file_digest, publish, read_json, temporary_name, write_json, write_text

HELD_OUT_ONE_IN = 16  # documents of the mixture, by a hash of their text
MIXTURE = "mixture"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredText:
    """The text to measure with.

    Attributes:
        train: file of documents for calibration, validation and training.
        held_out: name -> file, the first is `data.evaluation`.
        description: for the result: files with their digests, documents and characters by source.
    """

    train: Path
    held_out: dict[str, Path]
    description: dict[str, Any]


def prepare_text(folder: Path, output: Path) -> MeasuredText:
    """Split the mixture in a folder by document, and return it with the texts that are held out as they are.

    Every .txt file is a held-out text of its own, named after the file. The documents of all .jsonl files, with a
    `text` and a `source` each, are the mixture.

    Raises:
        Refusal: the folder holds no mixture, or a file that cannot be read.
    """
    texts, mixtures = sorted(folder.glob("*.txt")), sorted(folder.glob("*.jsonl"))
    if not mixtures:
        raise Refusal(f"--text: {str(folder)!r} holds no .jsonl file of documents")
    for path in (*texts, *mixtures):
        check_text(TextConfig(source="files", files=[str(path)]), "--text")
    parts = {"train": output / f"{MIXTURE}_train.jsonl", "held_out": output / f"{MIXTURE}_heldout.jsonl"}
    digests = {path.name: file_digest(path) for path in (*texts, *mixtures)}
    made = output / "texts.json"
    # The files stay as they are where they are those of the same text: token stores are found by their time of change.
    if not made.is_file() or read_json(made)["files"] != digests or not all(path.is_file() for path in parts.values()):
        output.mkdir(parents=True, exist_ok=True)
        counted = _split(_documents(mixtures), parts)
        write_json(made, {"files": digests, "mixture": counted, "held_out": f"1 document in {HELD_OUT_ONE_IN}"})
    held_out = {path.stem: path for path in texts} | {MIXTURE: parts["held_out"]}
    return MeasuredText(train=parts["train"], held_out=held_out, description=read_json(made))


def _documents(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())


def _split(documents: Iterable[dict[str, Any]], parts: dict[str, Path]) -> dict[str, Any]:
    """Write every document into its part, each text once; return documents and characters by part and source."""
    counted: dict[str, dict[str, Counter[str]]] = {part: {} for part in parts}
    seen = set()
    files = {part: temporary_name(path).open("w", encoding="utf-8") for part, path in parts.items()}
    for document in documents:
        digest = hashlib.blake2b(document["text"].encode(), digest_size=8).digest()
        if digest in seen:
            continue
        seen.add(digest)
        part = "held_out" if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else "train"
        files[part].write(json.dumps({"text": document["text"]}) + "\n")
        counts = counted[part].setdefault(document.get("source", "unnamed"), Counter())
        counts.update(documents=1, characters=len(document["text"]))
    for part, path in parts.items():
        files[part].close()
        publish(temporary_name(path), path)
    return {part: {source: dict(counts) for source, counts in sorted(found.items())} for part, found in counted.items()}


def prepare_tasks(folder: Path, output: Path) -> tuple[list[str], dict[str, str]]:
    """Write the lm-eval tasks of a folder into `output`, with absolute paths of their data files.

    A path is taken from the present folder, from the folder of tasks, or from one above it: whichever has the file.

    Returns:
        The names of the tasks, and the SHA-256 of each file that they come from.

    Raises:
        Refusal: the folder holds no task, one without accuracy, or a data file is not found.
    """
    output.mkdir(parents=True, exist_ok=True)
    names, digests = [], {}
    for path in sorted(folder.glob("*.yaml")):
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        files = task.get("dataset_kwargs", {}).get("data_files", {})
        for split, given in files.items():
            found = _found(given, folder.resolve())
            files[split], digests[found.name] = str(found), file_digest(found)
        if "acc" not in [metric.get("metric") for metric in task.get("metric_list", [])]:
            raise Refusal(f"--tasks: {task['task']!r} has no metric acc in its metric_list, which is what is compared")
        names.append(task["task"])
        digests[path.name] = file_digest(path)
        write_text(output / path.name, yaml.safe_dump(task))
    if not names:
        raise Refusal(f"--tasks: {str(folder)!r} holds no .yaml file of a task")
    return names, digests


def _found(given: str, folder: Path) -> Path:
    for base in (Path.cwd(), folder, *folder.parents):
        if (base / given).is_file():
            return (base / given).resolve()
    raise Refusal(f"--tasks: the data file {given!r} is not found from {str(folder)!r} or a folder above it")
