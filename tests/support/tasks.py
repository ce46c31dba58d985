"""Small tasks of lm-eval with their data beside them: nothing is looked up anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

SHOTS = {"which_word": 2, "how_likely": 0, "what_next": 0}
WORDS = ("return", "import", "while", "yield", "class")
QUESTIONS = [
    {"question": f"def {name}(self):\n    ", "choices": ["return", "import", name], "answer": number % 3}
    for number, name in enumerate(WORDS)
]
MEAN = {"aggregation": "mean", "higher_is_better": True}


def write_tasks(folder: Path, text: str) -> Path:
    """One task of each kind of request: choices, the likelihood of a text, generation. Returns the folder."""
    folder.mkdir()
    _task(
        folder,
        "which_word",
        QUESTIONS,  # five: no number of ranks but one shares them out evenly
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc", **MEAN}],
    )
    _task(
        folder,
        "how_likely",
        [{"text": text}],  # a single document: some ranks have none
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "byte_perplexity"}],
    )
    _task(
        folder,
        "what_next",
        [{"text": f"def {name}(", "next": "self"} for name in WORDS[:3]],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{next}}",
        generation_kwargs={"until": [")", "\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", **MEAN}],
    )
    return folder


def _task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | settings))
