"""From Hydra's composed dictionary to the typed configuration, and back to YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from transact.config.pruning import MethodConfig
from transact.config.run import FREE_SECTIONS, FREE_SETTINGS, RunConfig
from transact.config.setting import (
    check_values,
    dataclass_in,
    defaults_of,
    fields_of,
    is_dictionary,
    is_optional,
    require_choice,
    shown,
)
from transact.errors import Refusal

PACKAGE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """Return the folder conf/: beside the package in a checkout, inside it in an installed wheel."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


@cache
def register() -> None:
    """Register with Hydra what conf/ builds on: `schema` (every setting with its default) and two resolvers.

    `${assets:name}` is a folder that ships with transact; `${scratch_folder:}` is removed when the process ends.
    """
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=defaults_of(RunConfig), provider="transact.config")
    OmegaConf.register_new_resolver("assets", lambda name: str(PACKAGE / "assets" / name), replace=True)
    OmegaConf.register_new_resolver("scratch_folder", lambda: _scratch_folder().name, replace=True)


@cache
def _scratch_folder() -> TemporaryDirectory[str]:
    """Make the temporary folder of this process, readable to this user alone."""
    return TemporaryDirectory(prefix="transact_")


def compose_config(overrides: list[str]) -> RunConfig:
    """Compose the configuration as the command does with these overrides.

    Raises:
        ValueError: as `typed_config`.
        hydra.errors.HydraException: there is no such group, choice or setting.
    """
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("config", overrides=overrides)
    return typed_config(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]


def method_preset(name: str) -> MethodConfig:
    """Read the method of a file in conf/prune/method, without Hydra.

    Raises:
        ValueError: there is no such file.
    """
    presets = {path.stem: path for path in sorted((conf_folder() / "prune" / "method").glob("*.yaml"))}
    require_choice("method", name, tuple(presets))

    def values(preset: str) -> dict[str, Any]:
        own = dict(yaml.safe_load(presets[preset].read_text(encoding="utf-8")) or {})
        bases = [each for each in own.pop("defaults", []) if each in presets]
        return {key: value for base in bases for key, value in values(base).items()} | own

    return MethodConfig(**values(name))


def typed_config(composed: DictConfig | dict[str, Any]) -> RunConfig:
    """Check a composed configuration and convert it to dataclasses.

    Unknown keys are refused however they came (YAML, command line, `+`, `++`).

    Raises:
        ValueError: one line that names the field, the value and what is allowed.
    """
    register()
    given = OmegaConf.to_container(composed) if isinstance(composed, DictConfig) else composed
    assert isinstance(given, dict)
    if given.get("mode") == "plan":
        raise ValueError("mode='plan' is not allowed: use mode=estimate, which says what would be done and needed")
    _check_groups(RunConfig, given)
    check_values(RunConfig, given)  # before anything is converted: a number may be too large for that
    try:
        merged = OmegaConf.merge(_defaults(), _other_than(defaults_of(RunConfig), given))
        values = OmegaConf.to_container(merged, resolve=True)
        assert isinstance(values, dict)
        check_values(RunConfig, values)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise UnknownSetting(error) from None
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key or 'a setting'} is required: give it, or choose an experiment") from None
    except OmegaConfBaseException as error:
        message, *_ = str(error).partition("\n")  # the lines below repeat the key and name our types
        raise ValueError(f"{error.full_key or 'configuration'}: {message}") from None
    assert isinstance(config, RunConfig)
    return config


@cache
def _defaults() -> DictConfig:
    return OmegaConf.merge(OmegaConf.structured(RunConfig), defaults_of(RunConfig))  # type: ignore[return-value]


def _other_than(defaults: Mapping[Any, Any], given: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the values that are not the defaults: OmegaConf takes long to convert each, and most are."""
    kept = {}
    for key, value in given.items():
        default = defaults.get(key, MISSING)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _other_than(default, value) or MISSING
        elif type(value) is type(default) and value == default:
            value = MISSING
        if value is not MISSING:
            kept[key] = value
    return kept


def _check_groups(kind: type, given: Mapping[Any, Any], prefix: str = "") -> None:
    """Raise ValueError where a single value is given for a group of settings, as in prune.method=norms."""
    for declared, hint in fields_of(kind):
        inner, value, name = dataclass_in(hint), given.get(declared.name), f"{prefix}{declared.name}"
        if inner is None or declared.name not in given or is_dictionary(hint) or _is_interpolation(value):
            continue
        if isinstance(value, Mapping):
            _check_groups(inner, value, f"{name}.")
        elif value is not None or not is_optional(hint):
            group = name.replace(".", "/")
            choices = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
            one = f"{group}={value}" if value in choices else f"{group}= with one of {', '.join(choices)}"
            instead = f"choose {one}" if choices else f"write {name}.SETTING=, see --help {name}"
            raise ValueError(f"{name}={shown(value)} is not allowed: {name} is a group of settings; {instead}")


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


class UnknownSetting(Refusal):
    """A misspelt key; the message names the keys that exist beside it. key: as it was given."""

    def __init__(self, error: OmegaConfBaseException) -> None:
        parent = error.parent_node
        keys = sorted(str(key) for key in parent) if isinstance(parent, DictConfig) else []
        known = f"known here: {', '.join(keys)}" if keys else "see conf/"
        super().__init__(f"{error.full_key}: no such setting; {known}")
        self.key = str(error.full_key)


def to_yaml(config: RunConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dictionary(config: RunConfig) -> dict[str, Any]:
    return asdict(config)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `field: old -> new` for every setting that differs and that results depend on.

    A setting that was not there yet counts as left at its default.
    """
    before, after, defaults = _bound(old), _bound(new), _bound(defaults_of(RunConfig))
    before |= {key: defaults[key] for key in after.keys() - before.keys() if key in defaults}
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [f"{key}: {shown(before.get(key))} -> {shown(after.get(key))}" for key in changed]


def _bound(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that results depend on, flat."""
    kept = _flat({key: value for key, value in config.items() if key not in FREE_SECTIONS})
    return {key: value for key, value in kept.items() if key not in FREE_SETTINGS}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
