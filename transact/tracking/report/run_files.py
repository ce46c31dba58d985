"""What a run has left in its folder so far. Any file may be missing, half-written, or of another version."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from transact.runs.run_folder import variant_folders
from transact.runs.run_record import RECORD
from transact.tracking.report.activation_files import ActivationMap, read_activation_maps
from transact.tracking.report.metric_rows import Row, read_rows

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CONFIG, METRICS = "config.yaml", "metrics.jsonl"
LIVE_STATES = ("running", "submitted")

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundFiles:
    """One turn of the chain.

    Attributes:
        plan, evaluation: as in plan.json and evaluation.json; empty where they are not there yet.
        maps: by kind of channel; empty where there are none.
    """

    number: int
    plan: Values = field(default_factory=dict)
    evaluation: Values = field(default_factory=dict)
    maps: dict[str, ActivationMap] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """A run folder.

    Attributes:
        record, result: of run.json and result.json.
        config, config_text: of config.yaml.
        rows: of metrics.jsonl.
        dense: of the parent, as in round_00/evaluation.json.
        compared: role -> "texts" and "tasks", as in evaluation.json.
        efficiency: as in efficiency.json.
        split: as in split.json of the first round.
        variants: further recoveries of its cut.
        last_sign: unix seconds of the last change of run.json or metrics.jsonl; None where there is neither.
    """

    path: Path
    record: Values
    result: Values
    config: Values
    config_text: str
    rows: list[Row]
    dense: Values
    rounds: list[RoundFiles]
    compared: Values
    efficiency: Values
    split: Values
    last_sign: float | None
    variants: list[RunFiles] = field(default_factory=list)

    @property
    def parent_name(self) -> str:
        """The hub's id, or the last part of a folder's path; empty where there is no parent."""
        path = str(values_in(self.config, "model").get("path") or "")
        return path if HUB_ID.fullmatch(path) else Path(path).name

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.result.get("name") or self.path.absolute().name)

    @property
    def state(self) -> str:
        return str(self.record.get("state") or ("submitted" if not self.record else "running"))


def read_run(path: Path) -> RunFiles:
    """Never fails for what is in the folder."""
    config_text = _text(path / CONFIG)
    compared = read_values(path / "evaluation.json")
    return RunFiles(
        path=path,
        record=read_values(path / RECORD),
        result=read_values(path / "result.json"),
        config=_yaml(config_text),
        config_text=config_text,
        rows=read_rows(path / METRICS),
        dense=values_in(read_values(path / "round_00" / "evaluation.json"), "dense"),
        rounds=[_round(each) for each in sorted(path.glob("round_[0-9][0-9]")) if each.name != "round_00"],
        compared=compared,
        efficiency=read_values(path / "efficiency.json"),
        split=read_values(path / "round_01" / "split.json"),
        last_sign=max((stamp for name in (RECORD, METRICS) if (stamp := _changed(path / name))), default=None),
        variants=[read_run(each) for each in variant_folders(path)],
    )


def _round(folder: Path) -> RoundFiles:
    return RoundFiles(
        number=int(folder.name.removeprefix("round_")),
        plan=read_values(folder / "plan.json"),
        evaluation=read_values(folder / "evaluation.json"),
        maps=read_activation_maps(folder / "activation_maps.safetensors"),
    )


def read_values(path: Path) -> Values:
    """A JSON object; empty where there is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def values_in(values: Values, *names: str) -> Values:
    """The dictionary that is so deep inside; empty where there is none."""
    for name in names:
        inside = values.get(name)
        values = inside if isinstance(inside, dict) else {}
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _yaml(text: str) -> Values:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
