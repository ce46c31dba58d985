"""W&B, at arm's length: no failure of it reaches a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transact.errors import LONGEST_REASON, one_line
from transact.tracking import wandb_library
from transact.tracking.wandb_library import Mode
from transact.tracking.wandb_mode import choose_mode, has_api_key, server_url

logger = logging.getLogger(__name__)

ATTEMPTS: dict[str, tuple[Mode, ...]] = {
    "online": ("online", "offline"),
    "offline": ("offline",),
    "disabled": (),
}


class WandbRun:
    """One W&B run, on rank 0. A failure of W&B never raises: it is one warning, then silence."""

    def __init__(self) -> None:
        self.mode = "disabled"  # what is really going on; see `start`
        self._run: Any = None
        self._whereabouts: str | None = None

    def start(
        self,
        mode: str,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        notes: str | None = None,
        tags: Sequence[str],
        name: str,
        run_id: str,
        config: dict[str, Any],
        folder: str | os.PathLike[str],
    ) -> None:
        """Starts the run, or goes on with the one that has this id.

        Online falls back to offline, and offline to "disabled".

        Args:
            mode: as in `choose_mode`.
            run_id: the same at every restart, or `wandb sync` lets the second attempt overwrite
                the first. The caller keeps it in the run folder.
            config: what W&B shows as the run's configuration; no secrets.
            folder: the run folder; wandb writes into its subfolder `wandb`.

        Raises:
            ValueError: as `choose_mode`.
        """
        arguments: dict[str, Any] = {"project": project, "entity": entity, "group": group, "notes": notes}
        arguments |= {"name": name, "id": run_id, "tags": list(tags), "config": config}
        arguments |= {"dir": str(folder)}
        for candidate in ATTEMPTS[choose_mode(mode)]:
            if self._run is None:
                self._try_to_start(candidate, arguments)

    @property
    def whereabouts(self) -> str | None:
        """For the end of a run: its page, or the command that uploads it with all attempts before; None without W&B."""
        return self._whereabouts

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds one row; it carries the values of its axes, "tokens" and "prune/round"."""
        self._attempt("log", lambda run: run.log(dict(record)))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, Any]
    ) -> None:
        self._attempt("log", lambda run: run.log({name: wandb_library.table(columns, rows), **axes}))

    def alert(self, title: str, text: str) -> None:
        """Ten minutes must pass between two of the same title that W&B sends."""
        self._attempt("send an alert", lambda run: wandb_library.alert(run, title, text))

    def log_model(self, name: str, folder: Path, metadata: Mapping[str, Any]) -> None:
        """The folder as an artifact by reference: W&B learns where it is, and gets no file of it."""

        def log(run: Any) -> None:
            run.log_artifact(wandb_library.model_by_reference(name, folder, metadata))

        self._attempt("log the model", log)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Sets figures of the run as a whole."""
        self._attempt("write the summary", lambda run: run.summary.update(dict(figures)))

    def finish(self, exit_code: int) -> None:
        """Ends the run, waiting up to a minute for uploads; does nothing the second time."""
        self._attempt("finish", lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _try_to_start(self, mode: Mode, arguments: dict[str, Any]) -> None:
        try:
            if mode == "online" and not has_api_key():
                # On a terminal wandb would ask for a key, and wait.
                raise RuntimeError("no API key; set WANDB_API_KEY or run `wandb login`")
            self._run = wandb_library.initialise(mode, server_url(os.environ), arguments)
            self.mode = mode
            self._whereabouts = _whereabouts(mode, self._run)
            logger.info("W&B is %s: %s", mode, self._whereabouts)
        except Exception as error:  # noqa: BLE001 - no failure of W&B may end a run
            logger.warning("W&B cannot start %s: %s", mode, one_line(error, LONGEST_REASON))

    def _attempt(self, what: str, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - no failure of W&B may end a run
            self._run, self.mode = None, "disabled"
            logger.warning(
                "W&B failed to %s and is off from here on; metrics.jsonl goes on (%s)",
                what,
                one_line(error, LONGEST_REASON),
            )


def _whereabouts(mode: Mode, run: Any) -> str:
    if mode == "online":
        return str(run.url)
    attempts = Path(run.dir).parents[1] / "offline-run-*"  # in the order of their names, which is that of time
    return f"wandb sync {attempts}"
