"""Logging to W&B, of which no failure reaches the run. The only file that imports wandb."""

from __future__ import annotations

import logging
import netrc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, Unpack
from urllib.parse import urlsplit

from transact.errors import LONGEST_REASON, one_line

logger = logging.getLogger(__name__)

INIT_SECONDS = 20.0  # for the server's answer; without one the run is offline
FINISH_SECONDS = 60.0
LATEST_SERVER = "https://api.wandb.ai"
# A record carries the values of its axes, and wandb's own step counter stays unused: it only goes
# up, so after a restart it would silently drop every row of the repeated steps.
AXES = {
    "recover/*": "tokens",
    "perf/*": "tokens",
    "mem/*": "tokens",
    "data/*": "tokens",
    "prune/*": "prune/round",
    "eval/*": "prune/round",
    "calibrate/*": "prune/round",
}
SECONDS_BETWEEN_ALERTS = 600  # of the same title: W&B sends e-mails
Mode = Literal["online", "offline"]
ATTEMPTS: dict[str, tuple[Mode, ...]] = {"online": ("online", "offline"), "offline": ("offline",), "disabled": ()}


def choose_mode(mode: str, environ: Mapping[str, str] = os.environ) -> str:
    """Turn "auto" into "online" where there is a key, else "offline"; leave the other modes as they are.

    "auto" heeds a WANDB_MODE of "offline" or "disabled", as clusters set it for all their users.
    """
    if mode != "auto":
        return mode
    if environ.get("WANDB_MODE") in ("offline", "disabled"):
        return environ["WANDB_MODE"]
    return "online" if has_api_key(environ) else "offline"


def has_api_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether credentials for the server are set in the environment or in the netrc file."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = environ.get("NETRC") or Path(environ.get("HOME") or Path.home()) / ".netrc"
    try:
        server = urlsplit(server_url(environ)).netloc
        # The hosted service answers to two names, and `wandb login` wrote the older one for years.
        names = {server, "api.wandb.ai"} if server == "api.forge.coreweave.com" else {server}
        return not names.isdisjoint(netrc.netrc(str(path)).hosts)
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: the address is not a URL
        return False


def server_url(environ: Mapping[str, str]) -> str:
    """Return the address of the W&B server; wandb's own default has changed between versions."""
    if url := environ.get("WANDB_BASE_URL"):
        return url
    try:
        import wandb
    except ImportError:
        return LATEST_SERVER
    return str(wandb.Settings().base_url)


class Names(TypedDict):
    """The names of a run, as arguments of `wandb.init`."""

    project: str
    entity: str | None
    group: str | None
    notes: NotRequired[str | None]
    tags: list[str]
    name: str


class WandbRun:
    """One W&B run, on rank 0. A failure of W&B never raises: it is one warning, then silence."""

    def __init__(self) -> None:
        self.mode = "disabled"  # the mode that is in use; see `start`
        self._run: Any = None
        self._whereabouts: str | None = None

    def start(
        self,
        mode: str,
        *,
        run_id: str,
        config: dict[str, Any],
        folder: str | os.PathLike[str],
        **names: Unpack[Names],
    ) -> None:
        """Start the run, or resume the one that has this id.

        Online falls back to offline, and offline to "disabled".

        Args:
            mode: as in `choose_mode`.
            run_id: the same at every restart, or `wandb sync` lets the second attempt overwrite
                the first. The caller keeps it in the run folder.
            config: what W&B shows as the run's configuration; no secrets.
            folder: the run folder; wandb writes into its subfolder `wandb`.
            names: what the server shows the run under.
        """
        arguments = dict(names) | {"id": run_id, "config": config, "dir": str(folder)}
        try:
            candidates = ATTEMPTS[choose_mode(mode)]
        except Exception as error:  # noqa: BLE001 - an installation that cannot be imported, a machine without a home
            logger.warning("W&B cannot start: %s", one_line(error, LONGEST_REASON))
            return
        for candidate in candidates:
            if self._run is None:
                self._try_to_start(candidate, arguments)

    @property
    def whereabouts(self) -> str | None:
        """The address of the run's page, or the command that uploads it with all earlier attempts; None without W&B."""
        return self._whereabouts

    def log(self, record: Mapping[str, Any]) -> None:
        """Add one row, which carries the values of its axes, "tokens" and "prune/round"."""
        self._attempt("log", lambda run: run.log(dict(record)))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, Any]
    ) -> None:
        self._attempt("log", lambda run: run.log({name: table(columns, rows), **axes}))

    def alert(self, title: str, text: str) -> None:
        """Send an alert. Of the same title W&B sends at most one in ten minutes."""
        more = {"level": "WARN", "wait_duration": SECONDS_BETWEEN_ALERTS}
        self._attempt("send an alert", lambda run: run.alert(title=title, text=text, **more))

    def log_model(self, name: str, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Log the folder as an artifact by reference: W&B learns where it is, and gets no file of it."""

        def log(run: Any) -> None:
            run.log_artifact(model_by_reference(name, folder, metadata))

        self._attempt("log the model", log)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Set figures of the run as a whole."""
        self._attempt("write the summary", lambda run: run.summary.update(dict(figures)))

    def finish(self, exit_code: int) -> None:
        """End the run, waiting up to a minute for uploads. A second call has no effect."""
        self._attempt("finish", lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _try_to_start(self, mode: Mode, arguments: dict[str, Any]) -> None:
        try:
            if mode == "online" and not has_api_key():
                # On a terminal wandb would ask for a key and wait for it.
                raise RuntimeError("no API key; set WANDB_API_KEY or run `wandb login`")
            self._run = initialise(mode, server_url(os.environ), arguments)
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


def initialise(mode: Mode, server: str, arguments: Mapping[str, Any]) -> Any:
    """Start or resume the run whose id is in `arguments`, those of `wandb.init`.

    Raises:
        Exception: whatever wandb raises.
    """
    # The files of an artifact wait there for `wandb sync`. wandb's default, the home folder, may be local to a machine.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(arguments["dir"]).absolute() / "wandb" / "data"))
    import wandb

    try:
        run = wandb.init(**arguments, resume="allow", settings=_settings(mode, server))
        _define_axes(run)
    except Exception:
        # The service process still holds the id and would refuse the next attempt with it.
        wandb.teardown()
        raise
    return run


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def model_by_reference(name: str, folder: Path, metadata: Mapping[str, Any]) -> Any:
    """Return an artifact that says where the files are; they are neither read nor copied."""
    import wandb

    # W&B takes no other characters there.
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII), type="model", metadata=dict(metadata))
    for path in sorted(each for each in folder.resolve().iterdir() if each.is_file()):
        artifact.add_reference(path.as_uri(), name=path.name, checksum=False)
    return artifact


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
        # Code, command line, host and packages are not uploaded: they hold paths, and at times tokens.
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


def _whereabouts(mode: Mode, run: Any) -> str:
    if mode == "online":
        return str(run.url)
    attempts = Path(run.dir).parents[1] / "offline-run-*"  # sorted by name, they are in order of time
    return f"wandb sync {attempts}"
