"""The files of a run as they are so far. Any of them may be missing, half-written, or of another version."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file

from transact.rounds import round_name
from transact.runs.run_folder import RoundFolder, variant_folders
from transact.runs.run_record import RECORD

Array = npt.NDArray[Any]

KINDS = {
    "query": "Queries: rotary pairs, head by head",
    "key": "Keys: rotary pairs, head by head",
    "attention_output": "Attention output: dims, head by head",
    "intermediate": "MLP: intermediate channels",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationMap:
    """The norms of one kind of channels, and which of these are kept.

    Attributes:
        norms: (layers, channels) root of the mean square over tokens.
        kept: (layers, channels) bool; None where the cut is made in another basis than the channels'.
        sizes: (layers,) channels of each layer; behind those of a narrower one norms are zero.
    """

    norms: Array
    kept: Array | None
    sizes: Array

    def kept_energy(self) -> Array | None:
        """Return the share of the squares that is in kept channels, (layers,); 1 for a layer without any."""
        if self.kept is None:
            return None
        squares = np.square(self.norms)
        total = squares.sum(axis=1)
        kept = (squares * self.kept).sum(axis=1)
        return np.where(total > 0, kept / np.where(total > 0, total, 1), 1.0)

    def redundancy(self) -> Array:
        """Return 1 - participation ratio / channels, (layers,).

        0 where all channels carry the same energy, near 1 where few carry all. The participation ratio is
        (sum of squares)^2 / (sum of fourth powers).
        """
        squares = np.square(self.norms)
        fourth = np.square(squares).sum(axis=1)
        participating = np.square(squares.sum(axis=1)) / np.where(fourth > 0, fourth, 1)
        return 1 - participating / self.sizes

    def binned(self, columns: int) -> tuple[Array, Array | None]:
        """Return norms and share of kept channels, (layers, at most `columns`): neighbours share a column."""
        channels = self.norms.shape[1]
        size = -(-channels // columns)
        starts = np.arange(0, channels, size)
        counts = np.diff(np.append(starts, channels))
        squares = np.add.reduceat(np.square(self.norms), starts, axis=1) / counts
        kept = None if self.kept is None else np.add.reduceat(self.kept.astype(np.float64), starts, axis=1) / counts
        return np.sqrt(squares), kept


def read_activation_maps(path: Path) -> dict[str, ActivationMap]:
    """Return the maps by kind; none where the file is missing or not (yet) readable."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, TypeError, ValueError, KeyError):
        return {}
    maps = {kind: _map(tensors, kind) for kind in KINDS}
    return {kind: each for kind, each in maps.items() if each is not None}


def _map(tensors: dict[str, Array], kind: str) -> ActivationMap | None:
    norms, kept = tensors.get(f"{kind}.norms"), tensors.get(f"{kind}.kept")
    if norms is None or norms.ndim != 2 or norms.size == 0:
        return None
    if kept is not None and kept.shape != norms.shape:
        kept = None
    norms = np.nan_to_num(norms.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    sizes = tensors.get(f"{kind}.sizes")
    if sizes is None or sizes.shape != norms.shape[:1] or sizes.min() < 1:
        sizes = np.full(len(norms), norms.shape[1])
    return ActivationMap(norms=norms, kept=None if kept is None else kept.astype(bool), sizes=sizes)


Row = dict[str, Any]
Point = tuple[float, float]

NON_FINITE = ("nan", "inf", "-inf")
LONGEST_SERIES = 1200  # points that a chart draws; a screen has no more


def read_rows(path: Path) -> list[Row]:
    """Return every line that is a JSON object, oldest first, and skip all others; a missing file has none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def figure(value: Any) -> float | None:
    """Return a finite number as a float, and None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def series(rows: Iterable[Row], name: str) -> list[Point]:
    """Return (tokens, value) of a metric, in order of the tokens.

    Of rows with the same tokens, which a repeated step leaves, the last counts.
    """
    found: dict[float, float] = {}
    for row in rows:
        place, value = figure(row.get("tokens")), figure(row.get(name))
        if place is not None and value is not None:
            found[place] = value
    return sorted(found.items())


def names_below(rows: Iterable[Row], prefix: str) -> list[str]:
    """Return the metrics of a group, such as "mem/" or "calibrate/", in order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)))


def broken(rows: Iterable[Row], *names: str) -> int:
    """Count the rows in which one of these metrics is infinite or not a number."""
    return sum(any(row.get(name) in NON_FINITE for name in names) for row in rows)


def thinned(points: Sequence[Point], longest: int = LONGEST_SERIES) -> list[Point]:
    """Return at most about `longest` points: of every stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= longest:
        return list(points)
    size = math.ceil(2 * len(points) / longest)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        stretch = [(value, place) for place, value in points[start : start + size]]
        ends = sorted({min(stretch), max(stretch)}, key=itemgetter(1))
        kept += [(place, value) for value, place in ends]
    kept.append(points[-1])
    return list(dict.fromkeys(kept))


def even_sample(points: Sequence[Any], longest: int) -> list[Any]:
    """Return at most `longest` of the points, evenly spread, the first and the last among them."""
    if len(points) <= longest:
        return list(points)
    return [points[round(turn * (len(points) - 1) / (longest - 1))] for turn in range(longest)]


def tokens_at(rows: Iterable[Row], time: float) -> float:
    """Return the tokens trained on up to a moment (unix seconds), according to what is left in the log."""
    before = (row for row in rows if (figure(row.get("time")) or math.inf) <= time)
    return max((figure(row.get("tokens")) or 0.0 for row in before), default=0.0)


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CONFIG, METRICS = "config.yaml", "metrics.jsonl"

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundFiles:
    """The files of one round.

    Attributes:
        selection, evaluation: as in selection.json and evaluation.json; empty where they are not there yet.
        maps: by kind of channel; empty where there are none.
        shape_log: the shapes that a search has measured, in order: "widths" and "divergence".
    """

    number: int
    selection: Values = field(default_factory=dict)
    evaluation: Values = field(default_factory=dict)
    maps: dict[str, ActivationMap] = field(default_factory=dict)
    shape_log: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The contents of a run folder.

    Attributes:
        record, result: of run.json and result.json.
        config, config_text: of config.yaml.
        dense: of the parent, as in round_00/evaluation.json.
        compared: role -> "texts" and "tasks", as in comparison.json.
        efficiency: as in efficiency.json.
        imported: as in efficiency_imported.json.
        quantized: as in quantized/comparison.json, of `transact quantize`.
        split: as in split.json of the first round.
        variants: further recoveries of its cut.
        last_sign: unix seconds of the last change of run.json or metrics.jsonl; None where there is neither.
    """

    path: Path
    record: Values
    result: Values
    config: Values
    config_text: str
    dense: Values
    rounds: list[RoundFiles]
    compared: Values
    efficiency: Values
    imported: Values
    quantized: Values
    split: Values
    last_sign: float | None
    variants: list[RunFiles] = field(default_factory=list)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl, read at first use: the page of a sweep needs none of them."""
        return read_rows(self.path / METRICS)

    @property
    def parent_name(self) -> str:
        """The Hub id, or the last part of a folder's path; empty where there is no parent."""
        path = str(values_in(self.config, "model").get("path") or "")
        return path if HUB_ID.fullmatch(path) else Path(path).name

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.result.get("name") or self.path.absolute().name)

    @property
    def is_pretrained(self) -> bool:
        """Whether its only model was trained from random weights: `dense`, which is nobody's parent."""
        return bool(self.config.get("mode") == "pretrain")

    @property
    def state(self) -> str:
        return str(self.record.get("state") or ("submitted" if not self.record else "running"))


def read_run(path: Path) -> RunFiles:
    """Read a run folder; nothing that is in it makes this fail."""
    config_text = _text(path / CONFIG)
    compared = read_values(path / "comparison.json")
    return RunFiles(
        path=path,
        record=read_values(path / RECORD),
        result=read_values(path / "result.json"),
        config=_yaml(config_text),
        config_text=config_text,
        dense=values_in(read_values(RoundFolder(path / round_name(0)).evaluation), "dense"),
        rounds=list(_rounds(path)),
        compared=compared,
        efficiency=read_values(path / "efficiency.json"),
        imported=read_values(path / "efficiency_imported.json"),
        quantized=read_values(path / "quantized" / "comparison.json"),
        split=read_values(RoundFolder(path / round_name(1)).split),
        last_sign=max((stamp for name in (RECORD, METRICS) if (stamp := _changed(path / name))), default=None),
        variants=[read_run(each) for each in variant_folders(path)],
    )


def _rounds(path: Path) -> Iterator[RoundFiles]:
    """Yield the rounds that have begun."""
    for number in itertools.count(1):
        if not (path / round_name(number)).is_dir():
            return
        files = RoundFolder(path / round_name(number))
        yield RoundFiles(
            number=number,
            selection=read_values(files.selection),
            shape_log=read_shape_log(files.shape_log),
            evaluation=read_values(files.evaluation),
            maps=read_activation_maps(files.maps),
        )


def read_shape_log(path: Path) -> list[dict[str, Any]]:
    """Return the measured shapes of a log, up to a line that is cut short; none where there is no log."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    except OSError:
        return []
    for each in lines:
        try:
            row = json.loads(each)
        except ValueError:
            break
        if isinstance(row, dict):
            found.append(row)
    return found


def read_values(path: Path) -> Values:
    """Read a JSON object; return an empty one where there is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def values_in(values: Values, *names: str) -> Values:
    """Return the dictionary nested under these names; empty where there is none."""
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
    except (yaml.YAMLError, ValueError):  # ValueError: of a date that there is not
        return {}
    return values if isinstance(values, dict) else {}


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
