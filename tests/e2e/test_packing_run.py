"""A run in which tokens attend to their own document alone, against stock transformers given each document alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.support.commands import Workplace, transact
from tests.support.runs import assert_same_export, checkpoints, start, wait_until
from transact.config.compose import typed_config
from transact.data.order import SequenceOrder
from transact.data.token_store import TokenStore
from transact.files import read_json
from transact.models.folder import geometry_of
from transact.models.hooks import collect_statistics
from transact.models.stock import load_model
from transact.pruning.pair_scores import LOGIT_VARIANCE
from transact.pruning.statistics import SQUARES
from transact.quantize.finished_run import read_finished_run
from transact.rounds import reserved_sequences
from transact.runs.metrics import read_metrics
from transact.runs.run_record import read_config
from transact.stages.calibrate import read_statistics

LENGTH = 64


def asked(workplace: Workplace, name: str, *overrides: str) -> list[str]:
    """Lines as documents: a sequence holds several."""
    for path in (workplace.train, workplace.heldout):
        rows = [json.dumps({"text": each}) for each in path.read_text().splitlines() if each.strip()]
        path.with_suffix(".jsonl").write_text("\n".join(rows))
    return [
        *workplace.overrides(name),
        f"data.train.files=[{workplace.train.with_suffix('.jsonl')}]",
        f"data.evaluation.files=[{workplace.heldout.with_suffix('.jsonl')}]",
        "data.packing=documents",
        "eval.efficiency.measured=false",
        *overrides,
    ]


@pytest.fixture(scope="module")
def run(workplace: Workplace) -> Path:
    overrides = ["prune.rounds=1", "recover.objective=distillation", "recover.tokens=2048"]
    overrides.append(f"+eval.texts.seen={{source: files, files: ['{workplace.train}']}}")
    ended = transact(asked(workplace, "packed", *overrides), ranks=2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return workplace.folder / "packed"


def store_of(folder: Path, name: str) -> TokenStore:
    return TokenStore(folder.parent / "tokens" / read_json(folder / "run.json")["texts"][name]["store"])


def documents(store: TokenStore, positions: torch.Tensor) -> Iterator[torch.Tensor]:
    """The parts of documents in these sequences, (1, length) each."""
    found = store.position_ids(positions)
    assert found is not None
    for tokens, places in zip(store.sequences(positions), found, strict=True):
        starts = (places == 0).nonzero().flatten().tolist()
        yield from (part.unsqueeze(0) for part in tokens.tensor_split(starts[1:]))


@torch.no_grad()
def log_probabilities(folder: Path, documents: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all tokens but the first of each document, and these tokens."""
    model, logits, targets = load_model(folder, dtype=torch.float32), [], []
    for tokens in documents:
        logits.append(model(input_ids=tokens).logits[0, :-1])
        targets.append(tokens[0, 1:])
    return functional.log_softmax(torch.cat(logits), dim=-1), torch.cat(targets)


def training_positions(folder: Path, count: int | None) -> tuple[TokenStore, torch.Tensor]:
    """Those of calibration, or the first `count` of training."""
    store, config = store_of(folder, "data.train"), typed_config(read_config(folder) or {})
    order = SequenceOrder(num_sequences=store.num_sequences, num_reserved=reserved_sequences(config), seed=config.seed)
    of_calibration = config.recover.validation_sequences, config.prune.calibration_sequences
    return store, order.reserved(*of_calibration) if count is None else order.trainable(0, count)


def test_perplexity_is_that_of_the_documents_alone(run: Path) -> None:
    store, sliced = store_of(run, "data.evaluation"), next(run.glob("round_*/sliced"))
    every = torch.arange(store.num_sequences)
    assert len(list(documents(store, every))) > 2 * store.num_sequences
    scores, targets = log_probabilities(sliced, documents(store, every))
    measured = read_json(sliced.parent / "evaluation.json")["sliced"]
    assert measured["loss"] == pytest.approx(float(functional.nll_loss(scores, targets)), rel=1e-5)
    assert measured["tokens"] == len(targets) == store.num_targets(every)
    result, compared = (read_json(run / name)["pruned"] for name in ("result.json", "comparison.json"))
    assert [each["packing"] for each in (measured, result, compared["texts"]["seen"])] == ["documents"] * 3
    assert result["loss_of"] == "all" and "loss_of" not in compared["texts"]["seen"]  # as older files are
    assert "Perplexity per token of documents apart" in (run / "export" / "README.md").read_text(encoding="utf-8")


def test_teacher_and_student_see_the_same_documents(run: Path) -> None:
    """The divergence of the first step, the mean over all of its tokens on both ranks."""
    config = typed_config(read_config(run) or {})
    store, positions = training_positions(run, config.recover.batch)
    sliced, model = next(run.glob("round_*/sliced")), Path(config.model.path or "")
    student, teacher = (log_probabilities(each, documents(store, positions))[0] for each in (sliced, model))
    expected = functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
    first = next(row["recover/loss"] for row in read_metrics(run / "metrics.jsonl") if "recover/loss" in row)
    assert first == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_statistics_of_calibration_are_those_of_the_documents_alone(run: Path) -> None:
    store, positions = training_positions(run, None)
    folder = Path(typed_config(read_config(run) or {}).model.path or "")
    model, geometry = load_model(folder, dtype=torch.float32).eval(), geometry_of(folder)
    kinds = (*SQUARES, LOGIT_VARIANCE)
    with collect_statistics(model, geometry, kinds) as collector:
        for tokens in documents(store, positions):
            model(input_ids=tokens)
    found = read_statistics(next(run.glob("round_01/statistics.safetensors")))
    expected = collector.statistics(positions.numel() * LENGTH)
    for kind in kinds:
        torch.testing.assert_close(found[kind], expected[kind], rtol=1e-4, atol=1e-5)
    assert found.num_tokens == expected.num_tokens


def test_quantised_variants_would_attend_to_other_documents_and_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match=r"has data\.packing='documents': variants are quantised"):
        read_finished_run(run)


def test_adapters_that_go_on_after_a_kill_end_as_if_nobody_had_killed_them(workplace: Workplace) -> None:
    overrides: list[Any] = ["recover.method=lora", "engine.checkpoint_every.tokens=512", "prune.rounds=1"]
    whole = transact(asked(workplace, "whole", *overrides))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    killed = workplace.folder / "killed"
    process = start(asked(workplace, "killed", *overrides))
    wait_until(lambda: bool(checkpoints(killed)), process)
    process.kill()
    process.wait()
    ended = transact(asked(workplace, "killed", *overrides))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "goes on from checkpoint" in ended.stdout
    assert_same_export(workplace.folder / "whole", killed)
