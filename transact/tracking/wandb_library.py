"""The only file that imports wandb: how it is started, and what is made with its classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Mode = Literal["online", "offline"]
INIT_SECONDS = 20.0
FINISH_SECONDS = 60.0
LATEST_SERVER = "https://api.wandb.ai"
# A record carries the values of its axes, and wandb's own step counter stays unused: it only goes
# up, so after a restart it would silently drop every row of the repeated steps.
AXES = {
    "recover/*": "tokens",
    "perf/*": "tokens",
    "mem/*": "tokens",
    "prune/*": "prune/round",
    "eval/*": "prune/round",
    "calibrate/*": "prune/round",
}
SECONDS_BETWEEN_ALERTS = 600  # of the same title: W&B sends e-mails


def default_server() -> str:
    """wandb's own, which has changed between versions."""
    try:
        import wandb
    except ImportError:
        return LATEST_SERVER
    return str(wandb.Settings().base_url)


def initialise(mode: Mode, server: str, arguments: Mapping[str, Any]) -> Any:
    """Start or go on with the run whose id is in `arguments`, those of `wandb.init`.

    Raises:
        Exception: whatever wandb raises.
    """
    # What an artifact holds waits there for `wandb sync`. wandb's own place is the home folder, of one machine perhaps.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(arguments["dir"]).absolute() / "wandb" / "data"))
    import wandb

    try:
        run = wandb.init(**arguments, resume="allow", settings=_settings(mode, server))
        _define_axes(run)
    except Exception:
        # The service process still holds the id, and would refuse it to the next attempt.
        wandb.teardown()
        raise
    return run


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def model_by_reference(name: str, folder: Path, metadata: Mapping[str, Any]) -> Any:
    """An artifact that says where the files are; they are neither read nor copied."""
    import wandb

    artifact = wandb.Artifact(name, type="model", metadata=dict(metadata))
    for path in sorted(each for each in folder.resolve().iterdir() if each.is_file()):
        artifact.add_reference(path.as_uri(), name=path.name, checksum=False)
    return artifact


def alert(run: Any, title: str, text: str) -> None:
    run.alert(title=title, text=text, level="WARN", wait_duration=SECONDS_BETWEEN_ALERTS)


def _settings(mode: Mode, server: str) -> Any:
    import wandb

    return wandb.Settings(
        mode=mode,
        base_url=server,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        # The default of 15 s loses the rows of a killed process.
        x_transaction_log_flush_interval=2.0,
        silent=True,
        console="off",
        # Code, command line, host and packages stay here: they hold paths, and at times tokens.
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _define_axes(run: Any) -> None:
    for axis in sorted({"step", *AXES.values()}):
        run.define_metric(axis, hidden=True)
    for names, axis in AXES.items():
        run.define_metric(names, step_metric=axis)
