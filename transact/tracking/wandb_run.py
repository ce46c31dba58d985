"""W&B, at arm's length: the only file that imports wandb, and no failure of it reaches a run.

Whether to go online is decided before `wandb.init`: without a key it raises, and with a key but no
network it blocks for as long as it is allowed to.
"""

import logging
import netrc
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
PROBE_SECONDS = 2.0
INIT_SECONDS = 20.0
FINISH_SECONDS = 60.0
Mode = Literal["online", "offline"]
ATTEMPTS: dict[str, tuple[Mode, ...]] = {
    "online": ("online", "offline"),
    "offline": ("offline",),
    "disabled": (),
}
# A record carries the values of its axes, and wandb's own step counter stays unused: it only goes
# up, so after a restart it would silently drop every row of the repeated steps.
AXES = {
    "recover/*": "tokens",
    "perf/*": "tokens",
    "prune/*": "prune/round",
    "eval/*": "prune/round",
    "calibrate/*": "prune/round",
}


def has_api_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether credentials for the server are set in the environment or in the netrc file."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(_server_url(environ)).netloc
    # The hosted service answers to two names, and `wandb login` wrote the older one for years.
    names = {server, "api.wandb.ai"} if server == "api.forge.coreweave.com" else {server}
    path = environ.get("NETRC") or Path(environ.get("HOME") or Path.home()) / ".netrc"
    try:
        return not names.isdisjoint(netrc.netrc(str(path)).hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def server_reachable(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the server, or the proxy in front of it, takes a TCP connection within 2 seconds."""
    try:
        address = _probe_address(environ)
    except ValueError:  # the port of the address is no number
        return False
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
            connected.set()
        except (OSError, ValueError):  # ValueError: the name cannot be a host's
            pass

    # In a thread of its own: a cluster node without DNS looks up a name for up to half a minute,
    # and the look-up heeds no timeout.
    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return connected.is_set()


def choose_mode(
    mode: str,
    environ: Mapping[str, str] = os.environ,
    api_key_present: Callable[[Mapping[str, str]], bool] = has_api_key,
    reachable: Callable[[Mapping[str, str]], bool] = server_reachable,
) -> str:
    """Turns "auto" into "online" or "offline"; leaves the other modes as they are.

    "auto" heeds a WANDB_MODE of "offline" or "disabled", as clusters set it for all their users.

    Raises:
        ValueError: `mode` is none of "auto", "online", "offline", "disabled".
    """
    if mode not in MODES:
        raise ValueError(f"W&B mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode != "auto":
        return mode
    if environ.get("WANDB_MODE") in ("offline", "disabled"):
        return environ["WANDB_MODE"]
    return "online" if api_key_present(environ) and reachable(environ) else "offline"


class WandbRun:
    """One W&B run, on rank 0. A failure of W&B never raises: it is one warning, then silence."""

    def __init__(self) -> None:
        self.mode = "disabled"  # what is really going on; see `start`
        self._run: Any = None

    def start(
        self,
        mode: str,
        *,
        project: str,
        entity: str | None,
        group: str | None,
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
        arguments: dict[str, Any] = {"project": project, "entity": entity, "group": group}
        arguments |= {"name": name, "id": run_id, "tags": list(tags), "config": config}
        arguments |= {"dir": str(folder)}
        for candidate in ATTEMPTS[choose_mode(mode)]:
            if self._run is None:
                self._try_to_start(candidate, arguments)

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds one row; it carries the values of its axes, "tokens" and "prune/round"."""
        self._attempt("log", lambda run: run.log(dict(record)))

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Sets figures of the run as a whole."""
        self._attempt("write the summary", lambda run: run.summary.update(dict(figures)))

    def finish(self, exit_code: int) -> None:
        """Ends the run, waiting up to a minute for uploads; does nothing the second time."""
        self._attempt("finish", lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _try_to_start(self, mode: Mode, arguments: dict[str, Any]) -> None:
        try:
            self._run = _initialise(mode, arguments)
            self.mode = mode
            logger.info("W&B is %s: %s", mode, _whereabouts(mode, self._run))
        except Exception as error:  # noqa: BLE001 - no failure of W&B may end a run
            logger.warning("W&B cannot start %s: %s", mode, _one_line(error))

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
                _one_line(error),
            )


def _initialise(mode: Mode, arguments: dict[str, Any]) -> Any:
    if mode == "online" and not has_api_key():
        # On a terminal wandb would ask for a key, and wait.
        raise RuntimeError("no API key; set WANDB_API_KEY or run `wandb login`")
    import wandb

    try:
        run = wandb.init(**arguments, resume="allow", settings=_settings(mode))
        _define_axes(run)
    except Exception:
        # The service process still holds the id, and would refuse it to the next attempt.
        wandb.teardown()
        raise
    return run


def _settings(mode: Mode) -> Any:
    import wandb

    return wandb.Settings(
        mode=mode,
        base_url=_server_url(os.environ),
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


def _server_url(environ: Mapping[str, str]) -> str:
    if url := environ.get("WANDB_BASE_URL"):
        return url
    try:
        import wandb
    except ImportError:
        return "https://api.wandb.ai"
    # wandb's own default, which has changed between versions: probe the host it will call.
    return str(wandb.Settings().base_url)


def _probe_address(environ: Mapping[str, str]) -> tuple[str, int]:
    server = urlsplit(_server_url(environ))
    proxy = environ.get(f"{server.scheme}_proxy") or environ.get(f"{server.scheme}_proxy".upper())
    excluded = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").replace(",", " ").split()
    direct = any(f".{server.hostname}".endswith(f".{name.lstrip('.')}") for name in excluded)
    target = urlsplit(proxy) if proxy and not direct else server
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


def _whereabouts(mode: Mode, run: Any) -> str:
    folder = Path(run.dir).parent
    return str(run.url) if mode == "online" else f"`wandb sync {folder}` uploads it"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
