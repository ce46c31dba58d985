"""Recover: continued pretraining of a model, sharded by ZeRO. It never ends with worse weights than it began with."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from transact.config.run import RunConfig
from transact.engine.deepspeed_setup import TrainingSettings
from transact.engine.engine import Engine, open_engine
from transact.engine.model_folder import save_engine
from transact.engine.trained import adapter_parameters
from transact.engine.training_checkpoints import load_training, save_training
from transact.errors import RankFailed, Stopped, one_line, remedy
from transact.files import write_json
from transact.models.adapters import Adapters
from transact.pruning.schedule import learning_rate_at
from transact.rounds import Round, steps_to_validate
from transact.stages.evaluate import perplexity_of
from transact.stages.job import Job
from transact.stages.recover.adaptive import AdaptiveMixture, begin_adaptive
from transact.stages.recover.batches import Batches
from transact.stages.recover.checkpoints import CheckpointClock, Position, checkpoint_path, newest_checkpoint
from transact.stages.recover.health import Alert, AllocatorWatch, Diverged, PaceWatch, has_risen, rise
from transact.stages.recover.performance import Pace, memory_figures, peak_flops_of
from transact.stages.recover.profiling import StepProfiler
from transact.stages.recover.teacher import Teacher, open_teacher
from transact.stages.recover.validation import validation_losses, validation_positions
from transact.stages.texts import Texts, mixture_figures

# Name of the training loss. Only a cross-entropy has a perplexity.
LOSS_NAMES = {"cross_entropy": "cross_entropy", "distillation": "divergence", "mixed": "loss"}


class Recovery:
    """One round's training loop on one rank.

    position: where it begins; for a new recovery, with the validation loss of the weights as they are. best: this
    rank's part of the best weights so far. teacher: the model that the weights are distilled from, if there is one.
    """

    def __init__(
        self,
        job: Job,
        texts: Texts,
        round_: Round,
        engine: Engine,
        position: Position,
        best: dict[str, torch.Tensor],
        teacher: Teacher | None,
    ) -> None:
        self.job = job
        self.texts_as_asked, self.texts = texts, texts
        if position.mixture is not None:
            self.texts = AdaptiveMixture.from_dict(position.mixture).applied(texts)
        self.round = round_
        self.engine = engine
        self.teacher = teacher
        self.tokens_per_batch = job.config.recover.batch * job.config.data.sequence_length
        self.num_steps = round_.tokens // self.tokens_per_batch
        self.first_step = round_.first_sequence // job.config.recover.batch
        self.validation_steps = steps_to_validate(self.num_steps, job.config.recover)
        self.batches = Batches(self.texts, round_.first_sequence, job.config, job.group)
        self.position, self.best = position, best
        self.saved_step = position.step
        self.loss_name = LOSS_NAMES[job.config.recover.objective]
        self.clock = CheckpointClock(job.config.engine.checkpoint_every)
        self.pace_watch, self.allocator_watch = PaceWatch(), AllocatorWatch()
        self.pace = Pace(
            tokens=self.tokens_per_batch,
            world_size=job.group.world_size,
            flops_per_token=round_.geometry.training_flops_per_token(
                job.config.data.sequence_length,
                teacher.geometry if teacher else None,
                adapters=adapter_parameters(round_.geometry, job.config.recover),
            ),
            peak_flops=peak_flops_of(job.group.device),
        )

    def run(self) -> None:
        """Train to the end of the budget, then go back to the best weights seen, the first ones included.

        Raises:
            Stopped: on every rank, once a checkpoint is saved, when any was asked to stop.
            Diverged: on every rank.
        """
        if self.position.step == 0:
            rate, tokens = self.round.learning_rate, self.num_steps * self.tokens_per_batch
            lora = self.job.config.recover.lora
            by = f", adapters of rank {lora.rank}" if self.job.config.recover.method == "lora" else ""
            told = f"recovers with {tokens:,} tokens{by}, peak learning rate {rate:.1e}"
            self.job.say(f"round {self.round.number}: {told}")
            self._log_validation(self.position.best_loss, 0)
        with (
            self.job.progress(
                f"recover round {self.round.number}",
                self.num_steps * self.tokens_per_batch,
                completed=self.position.step * self.tokens_per_batch,
            ) as bar,
            StepProfiler(self.job, range(self.first_step + 1, self.first_step + self.num_steps + 1)) as profiler,
        ):
            self._validate_if_due()  # an earlier attempt may have stopped during this validation
            for step in range(self.position.step, self.num_steps):
                with profiler.step(self.first_step + step + 1):
                    loss = self._train_step(step)
                bar.advance(self.tokens_per_batch, **{self.loss_name: loss})
                self.position.step = step + 1
                self._validate_if_due()
                self._save_if_due()
        best_step = self.position.best_step
        if best_step < self.num_steps:
            self.job.say(f"round {self.round.number}: keeps the weights of step {best_step} of {self.num_steps}")
            self.engine.restore(self.best)

    def _save_if_due(self) -> None:
        """Save a checkpoint after this step if one is due, or if the job must stop (collective)."""
        group = self.job.group
        # After a skipped step nothing is worth saving: the newest checkpoint stays the last good one.
        is_well = self.position.health.skipped_in_a_row == 0
        due, asked = group.any(self.clock.is_due(self.tokens_per_batch) and is_well, group.is_asked_to_stop)
        if self.position.step == self.num_steps:
            return
        if asked:
            self._save_and_stop()
        if due:
            self._save()

    def _save_and_stop(self) -> NoReturn:
        step = self.position.step
        if step > self.saved_step:
            self._save()
            self.job.say(f"round {self.round.number}: saved after step {step} of {self.num_steps}")
        self.job.group.stop()

    def _save(self) -> None:
        begin = time.perf_counter()
        step, best_step = self.position.step, self.position.best_step
        try:
            save_training(
                self.engine,
                checkpoint_path(self.job, self.round, step),
                self.job.group,
                best=self.best if 0 < best_step < step else None,
                position=self.position.to_dict()
                | {"metrics_position": self.job.tracker.position(), "seconds": self.job.clock.elapsed()},
            )
        except Exception as error:  # of the disk, or of whatever serves it
            # RankFailed: another rank could not save. Any other RuntimeError: a rank is lost, the save is not to blame.
            if isinstance(error, RankFailed) or not isinstance(error, RuntimeError):
                self._alert(Alert("checkpoint", f"cannot be saved: {one_line(error)}"), step)
            raise
        seconds = time.perf_counter() - begin
        self._log({"perf/checkpoint_s": seconds}, step)
        self.clock.restart(seconds)
        self.saved_step = step
        self.job.show()

    def _validate_if_due(self) -> None:
        """Measure the validation loss of this step, if that is due and not done yet (collective).

        When the job must stop meanwhile, it saves a checkpoint first and validates when it resumes, because the loss
        decides which weights are the best.

        Raises:
            Stopped: on every rank.
        """
        step, group = self.position.step, self.job.group
        if step not in self.validation_steps or step <= self.position.validated_step:
            return

        def look(tokens: int) -> None:
            if group.any(group.is_asked_to_stop)[0]:
                raise Stopped  # on every rank; while stopping is deferred, nothing else ends the validation

        try:
            loss, by_text = validation_losses(self.job, self.texts, self.engine, look)
        except Stopped:
            self._save_and_stop()
        self.position.validated_step = step
        self._log_validation(loss, step)
        if has_risen(self.position.best_loss, loss):
            self._lower_rate(loss, step)
        elif by_text:  # not after a rise, whose weights are given up
            self._adapt(by_text, step)
        if loss < self.position.best_loss:
            self.position.best_loss, self.position.best_step = loss, step
            self.best = self.engine.snapshot()

    def _adapt(self, losses: list[float], step: int) -> None:
        """Change the weights of the mixture from the next step on, after a validation."""
        assert self.position.mixture is not None
        mixture = AdaptiveMixture.from_dict(self.position.mixture)
        first = self.round.first_sequence + step * self.job.config.recover.batch
        sources = self.job.config.data.train.by_name()
        weights = mixture.adapt(first, losses, [each.weight for each in sources.values()])
        self.position.mixture = mixture.to_dict()
        self.texts = mixture.applied(self.texts_as_asked)
        self.batches.begin_anew(self.texts)
        figures = {"validation_loss": losses, "weight": weights}
        self._log(
            {
                f"data/{kind}/{name}": value
                for kind, values in figures.items()
                for name, value in zip(sources, values, strict=True)
            },
            step,
        )

    def _lower_rate(self, loss: float, step: int) -> None:
        """Go back to the best weights with a lower learning rate, unless the round is over, and say so (collective)."""
        position, peak = self.position, self.round.learning_rate
        before, factor = position.rate_factor, self.job.config.recover.rate_after_rise
        if factor < 1 and step < self.num_steps:
            position.rate_factor *= factor
            self.engine.go_back(self.best)
        best = perplexity_of(position.best_loss), position.best_step
        rates = {"before": peak * before, "after": peak * position.rate_factor}
        self._alert(rise(best, perplexity_of(loss), **rates), step)

    def _log_validation(self, loss: float, step: int) -> None:
        perplexity, data = perplexity_of(loss), self.job.config.data
        self.job.say(
            f"round {self.round.number}, step {step} of {self.num_steps}: validation perplexity"
            f"{data.of_what(data.train)} {perplexity:.2f}"
        )
        figures = {"recover/validation_cross_entropy": loss, "recover/validation_perplexity": perplexity}
        memory = memory_figures(self.job.group)
        self._log(figures | memory, step)
        alert = self.allocator_watch.observe(memory)
        if alert is not None:
            self._alert(alert, step)
        self.job.show()

    def _train_step(self, step: int) -> float:
        """Train on one global batch and return its mean loss over all ranks, in nats per token."""
        config = self.job.config.recover
        rate = self.position.rate_factor * learning_rate_at(
            step,
            self.num_steps,
            peak=self.round.learning_rate,
            warmup_fraction=config.warmup_fraction,
            min_warmup_steps=config.min_warmup_steps,
            final_fraction=config.final_learning_rate_fraction,
            decay=config.decay,
        )
        begin = time.perf_counter()
        batch = self.batches.of(step)
        inputs = [each.tokens for each in batch], [each.position_ids for each in batch]
        teachings = self.teacher.teach(*inputs) if self.teacher else itertools.repeat(None)
        total = torch.zeros((), device=self.job.group.device)
        for each in batch:
            loss = self.engine.loss(each.tokens, next(teachings), each.counted, each.position_ids) * each.weight
            self.engine.backward(loss)
            applied = self.engine.step(rate)
            total += loss.detach()
            self.job.group.watchdog.progress()
        if step + 1 < self.num_steps:
            self.batches.read_ahead(step + 1)  # before the loss is read, which waits for the device
        mean = self.job.group.sum(total.double().cpu()).item() / (len(batch) * self.job.group.world_size)
        seconds = time.perf_counter() - begin
        figures = {"recover/loss": mean, f"recover/{self.loss_name}": mean, "recover/lr": rate}
        if self.loss_name == "cross_entropy":
            figures["recover/perplexity"] = perplexity_of(mean)
        norm = self.engine.gradient_norm()
        if norm is not None:
            figures["recover/grad_norm"] = norm
        figures |= self.pace.figures(seconds, self.batches.take_seconds())
        figures |= mixture_figures(self.texts, (self.first_step + step + 1) * config.batch)
        news = self._observe(mean, applied, figures)
        self._log(figures, step + 1)
        for alert in (news, self.pace_watch.observe(seconds)):
            if alert is not None:
                self._alert(alert, step + 1)
        self._check_health(step + 1)
        return mean

    def _observe(self, loss: float, applied: bool, figures: dict[str, float]) -> Alert | None:
        """Count what went wrong in the step, add the counts above zero to its figures, and return an alert if any."""
        health = self.position.health
        news = health.observe(loss, applied)
        figures |= {f"recover/{name}": getattr(health, name) for name in ("skipped", "spikes") if getattr(health, name)}
        return news

    def _check_health(self, step: int) -> None:
        """Raise Diverged after too many skipped steps in a row."""
        health, where = self.position.health, f"round {self.round.number}, step {step} of {self.num_steps}"
        if health.skipped_in_a_row > self.job.config.recover.max_skipped_steps:
            raise Diverged(
                f"{where}: {health.skipped_in_a_row} steps in a row had a loss or gradient that is infinite or not a "
                f"number (recover.max_skipped_steps). The last good checkpoint is kept; {remedy('diverged')}"
            )

    def _alert(self, alert: Alert, step: int) -> None:
        self.job.alert(alert.kind, alert.text, **self._axes(step))

    def _log(self, figures: dict[str, float], step: int) -> None:
        self.job.tracker.log(figures, **self._axes(step))

    def _axes(self, step: int) -> dict[str, int]:
        total_step = self.first_step + step
        return {"step": total_step, "tokens": total_step * self.tokens_per_batch, "round": self.round.number}


def recover(
    job: Job,
    texts: Texts,
    round_: Round,
    parent: Path | None,
    source: Path,
    output: Path,
    look: Callable[[Engine], object] = lambda engine: None,
) -> dict[str, Any]:
    """Train `source` on the round's tokens and write the best weights seen to `output` (collective).

    Args:
        parent: the dense model, for distillation; None where there is none.
        look: what else looks through the engine of `source` before it is trained.
    """
    config = job.config
    settings = TrainingSettings(
        gradient_accumulation_steps=config.recover.batch // (config.engine.micro_batch * job.group.world_size),
        learning_rate=round_.learning_rate,
        weight_decay=config.recover.weight_decay,
        betas=(config.recover.beta1, config.recover.beta2),
        gradient_clipping=config.recover.gradient_clipping,
        adapters=adapters_of(config),
    )
    made_of = job.made_of(source)
    found = newest_checkpoint(job, round_, made_of)
    job.forget_metrics(found[1]["metrics_position"] if found else None)
    mixture = None
    if config.data.train.adaptive and not found:
        assert parent is not None
        mixture = begin_adaptive(job, texts, round_, parent).to_dict()
    with (
        open_engine(source, config.engine, job.group, training=settings) as engine,
        contextlib.ExitStack() as stack,
    ):
        engine.rehearse(texts.train.sequences(validation_positions(job, texts)[: config.engine.micro_batch]))
        position = Position.from_manifest(found[1]) if found else _at_start(job, texts, engine, look, mixture)
        position.made_of = made_of
        teacher = stack.enter_context(open_teacher(job, parent))
        best = engine.snapshot()
        if found:
            job.clock.go_on(found[1].get("seconds", 0.0))  # checkpoints of earlier versions do not say
            saved = load_training(engine, found[0], job.group)
            if position.best_step > 0:
                best = saved or engine.snapshot()
        with job.group.interruption.deferred():  # a checkpoint is saved before a stop, and trained weights are written
            Recovery(job, texts, round_, engine, position, best, teacher).run()
            if position.mixture is not None and job.group.is_main:
                write_json(job.round(round_.number).mixture, position.mixture)
            stored: dict[str, Any] = {"source": source, "dtype": config.model.dtype, "adapters": settings.adapters}
            return save_engine(engine, output, job.group, **stored)


def adapters_of(config: RunConfig) -> Adapters | None:
    """Return the adapters to train; None where all weights are."""
    lora = config.recover.lora
    if config.recover.method == "full":
        return None
    return Adapters(rank=lora.rank, alpha=lora.alpha, targets=tuple(lora.targets), seed=config.seed)


def _at_start(
    job: Job, texts: Texts, engine: Engine, look: Callable[[Engine], object], mixture: dict[str, Any] | None
) -> Position:
    """Return where a recovery begins that has no checkpoint: with the validation loss of the weights as they are."""
    size = job.config.recover.validation_sequences * texts.train.sequence_length
    with job.progress("validate before recovery", size, share=(0.0, 0.0)) as bar:
        loss, _ = validation_losses(job, texts, engine, bar.advance)
    look(engine)
    return Position.at_start(loss, mixture)
