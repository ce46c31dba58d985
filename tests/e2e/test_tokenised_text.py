"""A run on text that is tokenised already, in a mixture and as held-out text."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch

from tests.support.commands import Workplace, transact
from tests.support.token_files import write_indexed_dataset
from transact.data.token_store import TokenStore
from transact.files import read_json
from transact.models.stock import load_tokenizer

HELD_OUT_TOO = 3  # documents of the training text


def test_a_run_on_tokens_has_the_tokens_of_the_text(workplace: Workplace, tmp_path: Path) -> None:
    """An indexed dataset of Megatron-LM beside a file of text, and an array of numpy as held-out text, on two ranks."""
    tokenizer = load_tokenizer(workplace.model)
    texts = [each for each in workplace.train.read_text().split("\n\n") if each.strip()]
    held = [each for each in workplace.heldout.read_text().split("\n\n") if each.strip()]
    trained, evaluated = ([tokenizer(each)["input_ids"] for each in some] for some in (texts, held))
    write_indexed_dataset(tmp_path / "corpus_text_document", trained, letter="H")
    evaluated = trained[:HELD_OUT_TOO] + evaluated
    stream = [token for each in evaluated for token in (*each, tokenizer.eos_token_id)]
    numpy.save(tmp_path / "held.npy", numpy.array(stream, dtype=numpy.int32))
    tokens = f"source: tokens, tokenizer: {workplace.model}"
    asked = [each for each in workplace.overrides("numbers") if not each.startswith("data=")]
    asked = [each for each in asked if not each.startswith(("data.train.files", "data.evaluation.files"))]
    asked += ["data=mixture", "data.evaluation.source=tokens", f"data.evaluation.files=[{tmp_path / 'held.npy'}]"]
    asked += [f"data.evaluation.tokenizer={workplace.model}", "data.evaluation_sequences=1000", "prune.rounds=1"]
    asked += [
        f"+data.train.sources.numbers={{{tokens}, files: [{tmp_path / 'corpus_text_document'}], weight: 3}}",
        f"+data.train.sources.words={{source: files, files: [{workplace.train}], weight: 1}}",
    ]
    ended = transact(asked, ranks=2)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    record = read_json(workplace.folder / "numbers" / "run.json")
    assert record["state"] == "done"
    stripped = {each.strip() for each in (*texts[:HELD_OUT_TOO], *held)}
    kept = [tokens for text, tokens in zip(texts, trained, strict=True) if text.strip() not in stripped]
    expected = {"data.train.sources.numbers": kept, "data.evaluation": evaluated}
    for setting, documents in expected.items():
        store = TokenStore(workplace.folder / "tokens" / record["texts"][setting]["store"])
        whole = [token for each in documents for token in (*each, tokenizer.eos_token_id)]
        found = store.sequences(torch.arange(store.num_sequences)).flatten().tolist()
        assert len(found) > 2000 and found == whole[: len(found)]
    assert record["texts"]["data.train.sources.numbers"]["documents_left_out"] >= HELD_OUT_TOO
