"""The three training loops that `benchmarks.throughput` compares, which take turns on the same batches."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_models import load_stock_model
from benchmarks.workload import wait
from transact.config.run import RunConfig
from transact.engine.deepspeed_setup import TrainingSettings, deepspeed_settings, import_deepspeed
from transact.engine.engine import open_engine
from transact.engine.sharded_state import optimizer_groups
from transact.rounds import Round, tokens_per_batch
from transact.runs.metrics import MetricsLog, read_metrics
from transact.stages.job import Job
from transact.stages.recover.batches import own_batch
from transact.stages.recover.checkpoints import Position
from transact.stages.recover.loop import Recovery
from transact.stages.recover.validation import validation_loss
from transact.stages.texts import Texts
from transact.tracking.tracker import Tracker

WARM_UP_STEPS = 2  # of every turn, not counted: DeepSpeed traces the model anew after a validation

Batch = list[torch.Tensor]  # this rank's micro-batches, (sequences, length) each
TrainStep = Callable[[Batch], None]
Turn = Callable[[], float]  # trains for the steps of one turn; seconds of those that count


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """The job, texts, model and settings that all three loops share."""

    job: Job
    texts: Texts
    model: Path
    round: Round
    settings: TrainingSettings

    @property
    def config(self) -> RunConfig:
        return self.job.config

    @property
    def num_steps(self) -> int:
        return self.round.tokens // tokens_per_batch(self.config)

    def batches(self) -> list[Batch]:
        """Return the batches that recovery reads from the token store, one a step."""
        size, micro_batch = self.config.recover.batch, self.config.engine.micro_batch
        device = self.job.group.device
        return [
            [
                self.texts.train.sequences(positions).to(device)
                for positions in own_batch(self.texts.order.trainable(step * size, size), micro_batch, self.job.group)
            ]
            for step in range(self.num_steps)
        ]

    def load_model(self) -> Any:
        """Load the whole model on every rank, in the engine's dtype."""
        return load_stock_model(self.model, self.config.engine.dtype).to(self.job.group.device).train()


@contextlib.contextmanager
def our_loop(contest: Contest) -> Iterator[Turn]:
    """Yield a turn of the recovery stage's own class. Seconds come from metrics.jsonl: logging and progress count."""
    path = contest.job.path("metrics.jsonl")
    log = MetricsLog(path) if contest.job.group.is_main else None
    with (
        Tracker(log, None) as tracker,
        open_engine(contest.model, contest.config.engine, contest.job.group, training=contest.settings) as engine,
    ):
        job = replace(contest.job, tracker=tracker)
        engine.rehearse(contest.texts.train.sequences(torch.arange(contest.config.engine.micro_batch)))
        validation_loss(job, contest.texts, engine)  # as a recovery begins

        def turn() -> float:
            position = Position.at_start(math.inf)
            Recovery(job, contest.texts, contest.round, engine, position, engine.snapshot(), None).run()
            if not job.group.is_main:
                return 0.0
            times = [record["time"] for record in read_metrics(path) if "recover/loss" in record]
            return float(times[-1] - times[WARM_UP_STEPS - contest.num_steps - 1])

        yield turn


@contextlib.contextmanager
def bare_deepspeed_loop(contest: Contest) -> Iterator[Turn]:
    """Yield a turn of DeepSpeed's own example with our settings: no logging, no learning rate, batches at hand."""
    engine_config = contest.config.engine
    model = contest.load_model()
    with contextlib.redirect_stdout(io.StringIO()):
        engine = import_deepspeed().initialize(
            model=model,
            model_parameters=optimizer_groups(model, contest.settings.weight_decay),
            config=deepspeed_settings(engine_config, engine_config.zero_stage, contest.settings),
        )[0]

    def train(batch: Batch) -> None:
        for tokens in batch:
            loss = engine(input_ids=tokens, labels=tokens, use_cache=False).loss
            engine.backward(loss)
            engine.step()

    yield timed(contest, train)


@contextlib.contextmanager
def plain_pytorch_loop(contest: Contest) -> Iterator[Turn]:
    """Yield a turn without DeepSpeed: one process, or DistributedDataParallel. AdamW works in the engine's dtype."""
    settings = contest.settings
    model = contest.load_model()
    optimizer = torch.optim.AdamW(
        optimizer_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas, fused=True
    )
    is_parallel = contest.job.group.world_size > 1
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if is_parallel else model

    def train(batch: Batch) -> None:
        for number, tokens in enumerate(batch, start=1):
            exchanges = not is_parallel or number == len(batch)
            with contextlib.nullcontext() if exchanges else wrapped.no_sync():
                (wrapped(input_ids=tokens, labels=tokens, use_cache=False).loss / len(batch)).backward()
        if settings.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

    yield timed(contest, train)


def timed(contest: Contest, train: TrainStep) -> Turn:
    """Return a turn of a loop without metrics: the clock starts after the warm-up, once all ranks are there."""
    batches = contest.batches()

    def turn() -> float:
        for batch in batches[:WARM_UP_STEPS]:
            train(batch)
        wait(contest.job.group)
        begin = time.perf_counter()
        for batch in batches[WARM_UP_STEPS:]:
            train(batch)
        wait(contest.job.group)
        return time.perf_counter() - begin

    return turn


LOOPS = {"ours": our_loop, "bare_deepspeed": bare_deepspeed_loop, "plain_pytorch": plain_pytorch_loop}
