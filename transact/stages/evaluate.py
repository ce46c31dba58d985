"""Evaluate: perplexity on held-out text, the work shared by the ranks."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from transact.data.order import micro_batches
from transact.data.training_text import TrainingStore
from transact.distributed.process import ProcessGroup
from transact.engine.engine import Engine
from transact.files import read_json, write_json
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.models.identity import UnusableModel
from transact.models.loss_head import Teaching
from transact.rounds import tokens_per_batch
from transact.stages.job import Job
from transact.stages.texts import Texts

LIKE_A_GUESS = 0.01  # nats around the loss of a uniform guess: weights that are zero or were never trained
NONSENSE = 2.0  # times the loss of a uniform guess
PERPLEXITY_OVERFLOW = 700.0  # exp of more nats than this is not a float


@torch.no_grad()
def mean_loss(
    engine: Engine,
    store: TrainingStore,
    positions: torch.Tensor,
    micro_batch: int,
    group: ProcessGroup,
    advance: Callable[[int], object] = lambda tokens: None,
    teachings: Sequence[Teaching] | None = None,
) -> float:
    """Return the mean next-token cross-entropy in nats per predicted token, the same on every rank (collective).

    The model is in evaluation mode meanwhile. Each sequence predicts its tokens from the second to the last; where not
    all tokens of the text count, the mean is of those that do. positions: (sequences,). advance: called with the tokens
    that all ranks together have done since the last call. teachings: of this rank's micro-batches, for a loss of
    distillation instead.
    """
    was_training = engine.module.training
    engine.module.eval()
    total = torch.zeros(2, dtype=torch.float64)  # nats, tokens
    told = 0
    for number, turn in enumerate(micro_batches(len(positions), micro_batch, group.rank, group.world_size)):
        start, stop = turn or (0, 1)
        own = positions[start:stop]
        tokens = store.sequences(own)
        teaching = None if teachings is None else teachings[number]
        loss = engine.loss(tokens, teaching, store.counted(own), store.position_ids(own))
        done = min(told + micro_batch * group.world_size, len(positions))
        advance((done - told) * tokens.shape[1])
        told = done
        if turn is not None:
            predicted = store.num_targets(own)
            total += torch.tensor([float(loss) * predicted, predicted], dtype=torch.float64)
        group.turn()
    group.sum(total)
    engine.module.train(was_training)
    return float(total[0] / total[1])  # `check_has_targets`: not of none


def perplexity_of(loss: float) -> float:
    """Return the perplexity of a loss in nats: e^700 at most, infinite where the loss is not finite."""
    return math.exp(min(loss, PERPLEXITY_OVERFLOW)) if math.isfinite(loss) else math.inf


def measure(
    job: Job,
    texts: Texts,
    model_folder: Path,
    advance: Callable[[int], object] = lambda tokens: None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Return everything that is reported about one model folder (collective). advance: as in `mean_loss`.

    What was measured in this process is not measured again. engine: of the folder, where a caller has one open.
    """
    config, count = job.config, texts.evaluation.num_sequences
    key = model_folder, texts.evaluation.name
    if key in job.measured:
        advance(count * texts.evaluation.sequence_length)
        return copy.deepcopy(job.measured[key])
    with job.borrow(model_folder) if engine is None else contextlib.nullcontext(engine) as model:
        positions, micro_batch = torch.arange(count), config.engine.micro_batch
        loss = mean_loss(model, texts.evaluation, positions, micro_batch, job.group, advance)
    found = describe(geometry_of(model_folder), config.data.sequence_length) | {
        "perplexity": perplexity_of(loss),
        "loss": loss,
        "sequence_length": config.data.sequence_length,
        "tokens": texts.evaluation.num_targets(torch.arange(count)),
        "loss_of": config.data.evaluation.loss,
        "packing": config.data.packing,
        "tasks": {},
    }
    job.measured[key] = found
    return copy.deepcopy(found)


def measure_ahead(job: Job, texts: Texts, model_folder: Path, engine: Engine) -> None:
    """Measure a model within another stage that has its engine open; `evaluate` will not measure it again."""
    size = texts.evaluation.num_sequences * texts.evaluation.sequence_length
    with job.progress("evaluate before recovery", size, share=(0.0, 0.0)) as bar:
        measure(job, texts, model_folder, bar.advance, engine)


def describe(geometry: Geometry, context_length: int) -> dict[str, Any]:
    """Return what follows from dimensions alone: KV bytes are for 16-bit caches, FLOPs of a forward at this context."""
    return {
        "parameters": geometry.parameters(),
        "kv_bytes_per_token": geometry.kv_bytes_per_token(),
        "flops_per_token": geometry.flops_per_token(context_length),
        "geometry": geometry.to_dict(),
    }


def evaluate(job: Job, texts: Texts, models: dict[str, Path], output: Path) -> None:
    """Write evaluation.json: role -> what `measure` returns (collective).

    Roles are "dense" of the parent, "sliced" of a round, and "recovered" where it has tokens.
    """
    store, results = texts.evaluation, {}
    with job.progress("evaluate", len(models) * store.num_sequences * store.sequence_length) as bar:
        for role, folder in models.items():
            results[role] = measure(job, texts, folder, bar.advance)
            judge(job, role, results[role])
            bar.advance(0, **{role: results[role]["perplexity"]})
    if job.group.is_main:
        write_json(output, results)


def judge(job: Job, role: str, measured: dict[str, Any]) -> None:
    """Check a model's loss, and alert where the parent's is above that of a uniform guess.

    Raises:
        UnusableModel: the loss is not finite, or that of a parent which knows nothing of the text.
    """
    loss, words = measured["loss"], measured["geometry"]["vocab_size"]
    if not math.isfinite(loss):
        raise UnusableModel(f"the {role} model's loss on data.evaluation is {loss}: its weights are damaged")
    if role != "dense" or job.config.mode == "pretrain":
        return
    guess = math.log(words)
    if abs(loss - guess) < LIKE_A_GUESS or loss > NONSENSE * guess:
        raise UnusableModel(
            f"the parent's perplexity on data.evaluation is {measured['perplexity']:,.1f}, and a uniform guess among "
            f"{words} tokens has {words}: its weights, its tokenizer or the text is not what it should be"
        )
    if loss > guess:
        text = f"the parent's perplexity, {measured['perplexity']:,.1f}, is above that of a uniform guess, {words}"
        job.alert("parent", text, step=0, tokens=0, round=0)


def report(job: Job, evaluation: Path, *, round_number: int, tokens: int) -> None:
    """Log the perplexities of an evaluation.json. tokens: of recovery up to here, for the axis of the metrics."""
    if not job.group.is_main:
        return
    perplexities = {role: result["perplexity"] for role, result in read_json(evaluation).items()}
    of = job.config.data.of_what(job.config.data.evaluation)
    for role, perplexity in perplexities.items():
        job.say(f"round {round_number}: {role} perplexity{of} {perplexity:.2f}")
    figures = {f"eval/perplexity_{role}": perplexity for role, perplexity in perplexities.items()}
    job.tracker.log(figures, step=tokens // tokens_per_batch(job.config), tokens=tokens, round=round_number)
