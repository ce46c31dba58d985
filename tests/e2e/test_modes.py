"""Other ways to run: a learning rate that destroys, a start from nothing, text that runs out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Workplace, transact
from transact.runs.metrics import read_metrics


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_recovery_never_ends_worse_than_it_began(workplace: Workplace) -> None:
    """A learning rate of 10 leaves nothing of a model: the sliced weights are kept, bit for bit, and it says so.
    Twice as many tokens are asked for as there are: it says that too. Every step may be skipped, so that the recovery
    comes to its end. Every validation above the start is said, and an alert: the rate is lowered there."""
    overrides = [*workplace.overrides("destroyed"), "prune/method=obs", "prune.rounds=1", "recover.learning_rate=10"]
    overrides += ["recover.max_skipped_steps=32", "recover.tokens=16384"]
    done = transact(
        [*overrides, f"data.train.files=[{workplace.heldout}]", f"data.evaluation.files=[{workplace.train}]"]
    )
    assert done.returncode == 0, done.stderr
    (row,) = read(workplace.folder / "destroyed/result.json")["rounds"]
    assert row["perplexity_recovered"] == row["perplexity_sliced"]
    assert math.isfinite(row["perplexity_recovered"])
    assert "keeps the weights of step 0" in done.stdout
    assert "each is used" in done.stdout
    rows = read_metrics(workplace.folder / "destroyed/metrics.jsonl")
    start, *later = (row["recover/validation_perplexity"] for row in rows if "recover/validation_perplexity" in row)
    assert len(later) == 4 and min(later) > start
    assert [row["alert"] for row in rows if "alert" in row].count("validation") == 4
    assert done.stdout.count(": validation perplexity ") == 5
    assert done.stdout.count(": validation: perplexity ") == 4
    assert "back to those weights, peak learning rate 5.0e+00 instead of 1.0e+01" in done.stdout
    rates = [row["recover/lr"] for row in rows if "recover/lr" in row]
    assert rates[3] == 10 and rates[4] == pytest.approx(5, rel=1e-2)
    assert rates[-1] == pytest.approx(10 / 2**3 * 0.1, rel=0.2), "the last validation comes too late to lower it"
    assert all("recover/divergence" in row for row in rows if "recover/loss" in row)
    assert not any("recover/perplexity" in row or "recover/cross_entropy" in row for row in rows)


def pretraining(workplace: Workplace, name: str) -> list[str]:
    """A pretraining of a model of one layer."""
    dimensions = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
        "vocab_size": 400,
        "max_position_embeddings": 64,
    }
    architecture = ",".join(f"{name}:{value}" for name, value in dimensions.items())
    asked = ["mode=pretrain", "prune.rounds=1", "recover.objective=cross_entropy", "model=demo_random"]
    overrides = [each for each in workplace.overrides(name) if not each.startswith("model.path")]
    return [*overrides, *asked, f"model.architecture={{{architecture}}}"]


def test_a_text_that_is_shorter_than_what_is_reserved_of_it_is_refused(workplace: Workplace) -> None:
    """In pretraining only the tokenizer that it makes tells how long the text is."""
    for name, overrides in (("cut", workplace.overrides("cut")), ("trained", pretraining(workplace, "trained"))):
        done = transact([*overrides, "recover.validation_sequences=9000"], ranks=2)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "at least 9024 are needed: 9016 for validation" in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.count("error:") == 1
        assert (workplace.folder / name / "run.json").exists() == (name == "trained")
    assert read(workplace.folder / "trained/run.json")["state"] == "failed"


def test_pretraining_makes_a_model_that_can_be_pruned(workplace: Workplace) -> None:
    done = transact(pretraining(workplace, "pretrained"))
    assert done.returncode == 0, done.stderr
    result = read(workplace.folder / "pretrained/result.json")
    assert result["pruned"] is None
    assert result["dense"]["perplexity"] < 300  # of 400 entries

    export = workplace.folder / "pretrained/export"
    pruned = transact(
        [*workplace.overrides("from_pretrained"), f"model.path={export}", "prune.rounds=1", "prune.remove_fraction=0.2"]
    )
    assert pruned.returncode == 0, pruned.stderr


def test_bfloat16_with_activation_checkpointing(bfloat16_run: Path) -> None:
    """What is exported is bfloat16 and loads as such."""
    import torch
    from transformers import AutoModelForCausalLM

    (row,) = read(bfloat16_run / "result.json")["rounds"]
    assert row["perplexity_recovered"] < row["perplexity_sliced"]
    model = AutoModelForCausalLM.from_pretrained(bfloat16_run / "export", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
