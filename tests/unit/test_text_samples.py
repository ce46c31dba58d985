"""What mode=estimate says of the texts: first tokens, about how many there are, and every problem on a line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.tiny import train_tokenizer, write_model, write_text_files
from transact.config.compose import compose_config
from transact.estimate.samples import text_samples
from transact.models.stock import load_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    train, _ = write_text_files(folder)
    train_tokenizer(train).save_pretrained(write_model(folder / "model"))
    documents = train.read_text(encoding="utf-8").split("\n\n")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"body": each, "number": 1}) + "\n" for each in documents), encoding="utf-8"
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": documents, "other": documents}), folder / "rows.parquet")
    return folder


def samples(place: Path, *overrides: str) -> dict[str, dict[str, object]]:
    settings = ["name=samples", f"model.path={place / 'model'}", "prune.remove_fraction=0.3", "data=local"]
    settings.append(f"data.evaluation.files=[{place / 'heldout.txt'}]")
    return text_samples(compose_config([*settings, *overrides]), 64, 64_000)


@pytest.mark.parametrize(
    "overrides",
    [["train.txt"], ["rows.jsonl", "body"], ["rows.parquet"], ["rows.parquet", None, "{text}"]],
    ids=lambda each: each[-1],
)
def test_amount_of_text_is_about_right(place: Path, overrides: list[str]) -> None:
    """Against the tokens of the whole text."""
    field = f"data.train.text_field={overrides[1] if len(overrides) == 2 else 'text'}"
    if overrides[2:]:
        field = f"data.train.text_template='{overrides[2]}'"
    found = samples(place, f"data.train.files=[{place / overrides[0]}]", field)
    whole = (place / "train.txt").read_text(encoding="utf-8")
    tokens = len(load_tokenizer(place / "model")(whole)["input_ids"])
    assert found["problems"] == []
    sample = found["texts"]["data.train"]
    assert isinstance(sample, dict) and sample["tokens"] == pytest.approx(tokens, rel=0.15)
    assert sample["first_tokens"] and "".join(sample["first_tokens"]).replace("Ġ", " ")[:3] == sample["first"][:3]


def test_each_problem_is_a_line(place: Path) -> None:
    (place / "empty.txt").write_text("", encoding="utf-8")
    sources = {
        "missing": "gone.txt",
        "empty": "empty.txt",
        "field": "rows.jsonl",
        "same": "heldout.txt",
        "fine": "train.txt",
    }
    overrides = [
        f"+data.train.sources.{name}={{source: files, files: [{place / file}], weight: 1}}"
        for name, file in sources.items()
    ]
    found = samples(place, "data=mixture", "data.evaluation.source=files", *overrides)
    assert list(found["texts"]) == ["data.train.sources.fine", "data.train.sources.same"]
    problems = found["problems"]
    assert len(problems) == 4
    words = "is empty", "text_field='text' is not in", "names no file", "is trained on too"  # by the sources' names
    for problem, expected in zip(problems, words, strict=True):
        assert expected in problem
