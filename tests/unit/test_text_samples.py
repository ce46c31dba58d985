"""What mode=estimate says of the texts: first tokens, about how many there are, and every problem on a line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.tiny import train_tokenizer, write_model, write_text_files
from tests.support.token_files import write_indexed_dataset
from transact.config.compose import compose_config
from transact.config.inputs import TextConfig
from transact.data.chat_template import ChatTemplate
from transact.data.document_marks import DocumentMarks
from transact.data.token_parts import Packing
from transact.data.tokenising import write_token_store
from transact.estimate.samples import text_samples
from transact.models.stock import load_tokenizer
from transact.stages.text_checks import open_tokens

PACKING = Packing(sequence_length=8, max_sequences=10**6)


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


def tokens_of(place: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(place / "model")
    return [tokenizer(each)["input_ids"] for each in (place / "train.txt").read_text(encoding="utf-8").split("\n\n")]


def test_of_tokens_the_first_document_and_the_exact_amount_are_told(place: Path) -> None:
    """Of an indexed dataset and of a token store, which says itself which tokenizer made it."""
    found, tokenizer = tokens_of(place), load_tokenizer(place / "model")
    amount = sum(map(len, found))
    write_indexed_dataset(place / "indexed", found)
    write_token_store(place / "store", tokenizer.batch_decode(found), tokenizer, PACKING)
    of_tokens = ["data.train.source=tokens", f"data.train.files=[{place / 'indexed'}]"]
    of_tokens.append(f"data.train.tokenizer={place / 'model'}")
    of_store = ["data.train.source=tokens", f"data.train.files=[{place / 'store'}]"]
    for overrides, tokens in ((of_tokens, amount), (of_store, 8 * ((amount + len(found)) // 8))):
        samples_found = samples(place, *overrides)
        assert samples_found["problems"] == []
        sample = samples_found["texts"]["data.train"]
        assert isinstance(sample, dict) and sample["tokens"] == pytest.approx(tokens, abs=8)
        assert sample["first_tokens"] == tokenizer.convert_ids_to_tokens(found[0][:12])
        assert sample["first"] == (place / "train.txt").read_text(encoding="utf-8")[: len(sample["first"])]
    without_model = samples(place, *of_tokens, "model.path=gone/away")
    assert without_model["texts"]["data.train"]["first"] == f"tokens {' '.join(map(str, found[0][:12]))}"


def test_each_problem_of_tokens_is_a_line(place: Path) -> None:
    found = tokens_of(place)
    for name, documents in {"fine": found, "foreign": [[3, 4, 512]], "no_index": found, "held": found[:9]}.items():
        write_indexed_dataset(place / name, documents)
    (place / "no_index.idx").unlink()
    other = train_tokenizer(place / "heldout.txt")
    other.save_pretrained(place / "other")
    write_token_store(place / "of_another", ["import os\n" * 100], other, PACKING)
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chats = Packing(sequence_length=8, max_sequences=9, chat=ChatTemplate(other, DocumentMarks(), answers=False))
    turn = {"role": "user", "content": "import os, sys"}
    write_token_store(place / "chats", [json.dumps({"messages": [turn]})] * 9, other, chats)
    model = str(place / "model")
    sources = [
        ("anonymous", "fine", "null"),
        ("foreign", "foreign", model),
        ("gone", "nowhere", model),
        ("no_index", "no_index", model),
        ("of_another", "of_another", "null"),
        ("of_chats", "chats", "null"),
        ("other", "fine", str(place / "other")),
        ("other_gone", "fine", str(place / "nowhere")),
        ("same", "held", model),
        ("well", "fine", model),
    ]
    overrides = [
        f"+data.train.sources.{name}={{source: tokens, files: [{place / file}], tokenizer: {made_by}, weight: 1}}"
        for name, file, made_by in sources
    ]
    held = ["data.evaluation.source=tokens", f"data.evaluation.tokenizer={model}"]
    held.append(f"data.evaluation.files=[{place / 'held.bin'}]")
    told = samples(place, "data=mixture", *overrides, *held)
    assert list(told["texts"]) == ["data.train.sources.same", "data.train.sources.well"]
    words = [
        "anonymous.tokenizer=null is not allowed: '.*fine.bin' does not say",
        "foreign.files: '.*foreign.bin' holds token 512 at position 2; the tokenizer has tokens 0 to 511",
        "gone.files: '.*nowhere' names no file",
        "no_index.files: there is no '.*no_index.idx'",
        "of_another.files: what made '.*tokens.bin' is not the model's own tokenizer",
        "of_chats.files: '.*chats' is a token store of conversations",
        "other.tokenizer='.*other' is not the model's own tokenizer",
        "other_gone.tokenizer: no tokenizer in '.*nowhere'",
        "data.evaluation.files: '.*held.bin' is trained on too",
    ]
    assert len(told["problems"]) == len(words)
    for problem, expected in zip(told["problems"], words, strict=True):
        assert re.search(expected, str(problem)) and "\n" not in str(problem)


def test_a_tokenizer_that_is_named_as_the_model_is_is_not_looked_for(place: Path) -> None:
    """The nodes of a cluster seldom reach the hub, and a model at a commit leaves no name in the cache."""
    write_indexed_dataset(place / "of_hub", [[5, 6]])
    gone, tokenizer = str(place / "out_of_reach"), train_tokenizer(place / "train.txt")
    text = TextConfig(source="tokens", files=[str(place / "of_hub")], tokenizer=gone)
    open_tokens(text, "data.train", tokenizer, "auto", gone)
    with pytest.raises(ValueError, match="out_of_reach"):
        open_tokens(text, "data.train", tokenizer, "auto", str(place / "model"))
