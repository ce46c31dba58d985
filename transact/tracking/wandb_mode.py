"""Whether W&B goes online, and under which names and tags a run is found there."""

from __future__ import annotations

import netrc
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transact.config.outputs import TrackConfig
from transact.config.run import RunConfig
from transact.config.setting import check_values

MODES = ("auto", "online", "offline", "disabled")
PROBE_SECONDS = 2.0


def has_api_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether credentials for the server are set in the environment or in the netrc file."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(server_url(environ)).netloc
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


def server_url(environ: Mapping[str, str]) -> str:
    if url := environ.get("WANDB_BASE_URL"):
        return url
    from transact.tracking.wandb_library import default_server

    return default_server()


def _probe_address(environ: Mapping[str, str]) -> tuple[str, int]:
    server = urlsplit(server_url(environ))
    proxy = environ.get(f"{server.scheme}_proxy") or environ.get(f"{server.scheme}_proxy".upper())
    excluded = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").replace(",", " ").split()
    direct = any(f".{server.hostname}".endswith(f".{name.lstrip('.')}") for name in excluded)
    target = urlsplit(proxy) if proxy and not direct else server
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


DEFAULT_PROJECT = "transact"
VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "run_name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
}


def fill_from_environment(track: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Set what is null or empty in the composed section `track`, so that the run's own record holds it too.

    Raises:
        ValueError: a variable holds what the setting does not take.
    """
    for name, variable in VARIABLES.items():
        given = environ.get(variable, "").strip()
        if not given or track.get(name):
            continue
        value = [tag.strip() for tag in given.split(",") if tag.strip()] if name == "tags" else " ".join(given.split())
        check_values(TrackConfig, {name: value}, f"the environment's {variable}: track.")
        track[name] = value
    track.project = track.get("project") or DEFAULT_PROJECT


LONGEST = 64  # characters that W&B takes
BETWEEN_SETTINGS = re.compile(r",(?=[~+\w./@-]+=)")  # a comma between two settings, not within a list


def run_tags(config: RunConfig) -> list[str]:
    """The user's own, then what the run does; of a point of a sweep also the settings that are swept over."""
    tags = [*config.track.tags, config.mode]
    if config.model.path:
        tags.append(f"model={Path(config.model.path).name}")
    if config.mode == "prune" and config.prune.remove_fraction is not None:
        tags.append(f"remove_fraction={config.prune.remove_fraction:g}")
    if config.recover.variant is not None:
        tags.append(f"variant={config.recover.variant}")
    if config.share_dir is not None:
        tags += ["sweep", *(part for part in point_settings(Path(config.output_dir).name) if "=" in part)]
    return list(dict.fromkeys(tag[:LONGEST] for tag in tags))


def point_settings(folder: str) -> list[str]:
    """What the name of a point's folder says: the settings that are swept over."""
    return BETWEEN_SETTINGS.split(folder)
