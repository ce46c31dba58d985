"""The one object that a stage reports to: writes `metrics.jsonl` first, then mirrors it to W&B."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from transact.runs.metrics import MetricsLog
from transact.tracking.wandb_run import WandbRun

Metrics = Mapping[str, float | str]


class Tracker:
    """The recorder of metrics. `Tracker(None, None)`, for ranks other than 0, does nothing.

    As a context manager it finishes the run on exit, with exit code 1 after an exception, else 0.
    """

    def __init__(self, log: MetricsLog | None, wandb_run: WandbRun | None) -> None:
        self._metrics_log = log
        self._wandb_run = wandb_run

    @contextmanager
    def silent(self, is_silent: bool) -> Iterator[None]:
        """Record and truncate nothing inside if `is_silent`: what is measured there is on record already."""
        log, wandb_run = self._metrics_log, self._wandb_run
        if is_silent:
            self._metrics_log = self._wandb_run = None
        try:
            yield
        finally:
            self._metrics_log, self._wandb_run = log, wandb_run

    def log(self, metrics: Metrics, *, step: int, tokens: int, round: int) -> None:
        """Record figures that were already reduced over the ranks.

        Args:
            metrics: name to value; the part before the slash picks the axis ("recover/loss").
            step: optimiser steps so far, over all rounds.
            tokens: tokens trained on so far, over all rounds.
            round: 0 for the dense parent, then 1, 2, ...

        Raises:
            ValueError, TypeError, OSError: as `MetricsLog.append`. W&B never raises.
        """
        if self._metrics_log is not None:
            self._metrics_log.append(metrics, step=step, tokens=tokens, round=round)
        if self._wandb_run is not None:
            axes = {"step": step, "tokens": tokens, "prune/round": round}
            self._wandb_run.log({**metrics, **axes})

    def alert(self, kind: str, text: str, *, step: int, tokens: int, round: int) -> None:
        """Record that something needs a person's attention; W&B may send an e-mail.

        Args:
            kind: "skipped step", "loss spike", "validation", "slow", "memory", "checkpoint", "parent".

        Raises:
            OSError: as `MetricsLog.append`. W&B never raises.
        """
        if self._metrics_log is not None:
            self._metrics_log.append({"alert": kind, "alert/text": text}, step=step, tokens=tokens, round=round)
        if self._wandb_run is not None:
            self._wandb_run.alert(kind, text)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], *, tokens: int, round: int) -> None:
        """Log a table to W&B only: its figures are in files of the run already."""
        if self._wandb_run is not None:
            self._wandb_run.log_table(name, columns, rows, {"tokens": tokens, "prune/round": round})

    def log_model(self, name: str, folder: Path, metadata: Metrics) -> None:
        """Log to W&B only where the model is."""
        if self._wandb_run is not None:
            self._wandb_run.log_model(name, folder, metadata)

    @property
    def whereabouts(self) -> str | None:
        """The address of this run's page at W&B, or the command that uploads it; None without W&B."""
        return None if self._wandb_run is None else self._wandb_run.whereabouts

    def summary(self, figures: Metrics) -> None:
        """Set the figures of the W&B table of runs; on disk `result.json` records them."""
        if self._wandb_run is not None:
            self._wandb_run.summary(figures)

    def position(self) -> int:
        """Return the length of `metrics.jsonl` in bytes, for a checkpoint; 0 on ranks other than 0."""
        return self._metrics_log.position() if self._metrics_log is not None else 0

    def truncate(self, position: int) -> None:
        """Remove the lines after `position` bytes, which an unfinished attempt wrote before it starts again.

        W&B cannot remove them: the repeated steps show twice there.
        """
        if self._metrics_log is not None:
            self._metrics_log.truncate(position)

    def finish(self, exit_code: int) -> None:
        """Close the log and mark the W&B run finished (0) or failed. A second call has no effect."""
        if self._metrics_log is not None:
            self._metrics_log.close()
        if self._wandb_run is not None:
            self._wandb_run.finish(exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *rest: object) -> None:
        self.finish(0 if exception_type is None else 1)
