"""Check a model folder before any work starts: that it is a LLaMA, that its weights are complete and safe to read."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from transact.config.inputs import ModelConfig
from transact.config.setting import shown
from transact.errors import LONGEST_REASON, one_line
from transact.files import read_json
from transact.geometry import Geometry
from transact.models.llama import check_supported, read_geometry
from transact.models.model_files import (
    CONFIG,
    DOWNLOADED,
    MAX_CONFIG_BYTES,
    SECOND_COPIES,
    TOKENIZER_FILES,
    check_names,
    check_shards,
    own_file,
    read_object,
    stored_dtype,
)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_SECONDS = 10


def is_local(path: str) -> bool:
    """Return whether a path is a local folder, or does not have the form of a hub id."""
    return Path(path).is_dir() or not HUB_ID.fullmatch(path)


def hub_id(path: str) -> str | None:
    """Return owner/name of a model on the hub, or of a folder in the hub's cache; None for any other folder."""
    if not is_local(path):
        return path
    folder = Path(path).resolve()
    kind, *parts = folder.parent.parent.name.split("--")
    return "/".join(parts) if folder.parent.name == "snapshots" and kind == "models" and len(parts) == 2 else None


def read_model_config(model: ModelConfig) -> dict[str, Any]:
    """Return the parsed config.json of a local folder, or of a hub model (this one file is downloaded).

    Raises:
        ValueError: there is none, or it is not a LLaMA that can be pruned.
    """
    assert model.path is not None
    path = _local_config(model.path) if is_local(model.path) else _hub_config(model.path, model.revision)
    return _supported_config(model.path, path)


def _supported_config(named: str, path: Path, *, as_parent: bool = True) -> dict[str, Any]:
    try:
        config = read_object(path, MAX_CONFIG_BYTES)
        check_supported(config, as_parent=as_parent)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"model.path={named!r}: {one_line(error)}") from None
    return config


def _local_config(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"model.path={path!r} is neither a folder nor a hub id (owner/name)")
    found = own_file(folder, CONFIG)
    if found is None:
        raise ValueError(f"model.path={path!r} holds no config.json")
    return found


def _hub_config(name: str, revision: str | None) -> Path:
    """Return the path of config.json in the local cache of the hub; download it where it is not there."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
    except OSError:
        check_hub_reachable(name)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the model is not available
        raise ValueError(_unavailable(name, error)) from None


def check_hub_reachable(name: str) -> None:
    """Check that the hub answers: without a network its client retries for half a minute, and logs each retry.

    Raises:
        ValueError: the hub does not answer.
    """
    try:
        _connect_to_hub()
    except OSError as error:
        raise ValueError(_unavailable(name, error)) from None


def is_hub_reachable() -> bool:
    try:
        _connect_to_hub()
    except OSError:
        return False
    return True


def _connect_to_hub() -> None:
    if urllib.request.getproxies():
        return  # only the client can tell what the proxy reaches
    address = urllib.parse.urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT_SECONDS).close()


def _unavailable(name: str, error: Exception) -> str:
    return (
        f"model.path={name!r} is no local folder and was not found on the hub ({one_line(error, LONGEST_REASON)}): "
        "give the path of a folder, or log in with `hf auth login` where the model asks for a licence"
    )


def download(model: ModelConfig, *, from_cache: bool) -> Path:
    """Return the local folder of a model; a hub model is downloaded, or only looked up in the local cache.

    Raises:
        ValueError: it cannot be downloaded, or is not in the cache.
    """
    assert model.path is not None
    if is_local(model.path):
        return Path(model.path)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model.path,
            revision=model.revision,
            allow_patterns=DOWNLOADED,
            ignore_patterns=SECOND_COPIES,
            local_files_only=from_cache,
        )
    except Exception as error:  # noqa: BLE001 - as above
        hint = "; HF_HOME must be a folder that all nodes share" if from_cache else ""
        raise ValueError(_unavailable(model.path, error) + hint) from None
    return Path(folder)


def check_architecture(model: ModelConfig, config: dict[str, Any]) -> None:
    """Check that the dimensions that the configuration declares are those of the folder.

    Raises:
        ValueError: names the first that differs.
    """
    if model.architecture is None:
        return
    declared = read_geometry(model.architecture.to_model_config()).to_dict()
    found = read_geometry(config).to_dict()
    for name, value in declared.items():
        if found[name] != value:
            raise ValueError(f"model.architecture: {name}={shown(value)}, but {model.path!r} has {shown(found[name])}")


def declared_config(model: ModelConfig) -> dict[str, Any]:
    """Return the config.json for an estimate: of the local folder, else as declared, else of the hub model.

    Raises:
        ValueError: there is none, or the folder's is not the one that is declared.
    """
    if model.architecture is not None and not is_at_hand(model):
        return model.architecture.to_model_config()
    found = read_model_config(model)
    check_architecture(model, found)
    return found


def is_at_hand(model: ModelConfig) -> bool:
    """Return whether model.path is a local folder with a config.json, which an estimate can read."""
    return is_local(model.path or "") and (Path(model.path or "") / "config.json").is_file()


def declared_geometry(model: ModelConfig) -> Geometry:
    return read_geometry(declared_config(model))


def geometry_of(folder: Path) -> Geometry:
    """Return the dimensions of a local model folder."""
    return read_geometry(read_json(folder / "config.json"))


def dtype_of(folder: Path) -> str:
    """Return the dtype that the weights of a local folder count as: see `stored_dtype`."""
    return stored_dtype(read_json(folder / CONFIG), folder)


def check_files(folder: Path, *, as_parent: bool = True) -> None:
    """Check everything that headers, names and config.json show of a folder.

    Every weight must be there in safetensors, complete and of the shape that config.json says; there must be a
    tokenizer; and no file may be a link out of the folder. as_parent: as in `check_supported`.

    Raises:
        ValueError: names the file, and what to do.
    """
    config = _supported_config(str(folder), _local_config(str(folder)), as_parent=as_parent)
    try:
        check_names(folder)
        stored_dtype(config, folder)
    except ValueError as error:
        raise ValueError(f"model.path={str(folder)!r}: {error}") from None
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"model.path={str(folder)!r} holds no tokenizer ({' or '.join(TOKENIZER_FILES)})")
    check_shards(folder, read_geometry(config))
