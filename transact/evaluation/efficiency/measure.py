"""Measure what pruning saves at inference: latency, memory, size on disk, beside the parent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from transact.config.outputs import EfficiencyConfig
from transact.errors import one_line
from transact.evaluation.efficiency.draft import PROMPTS, measure_draft
from transact.evaluation.efficiency.generation import (
    Clock,
    Turn,
    generate,
    medians,
    peak_bytes,
    random_prompt,
    speed_ups,
)
from transact.files import read_json
from transact.geometry import Geometry
from transact.models.folder import check_files, geometry_of
from transact.models.llama import check_supported, read_geometry
from transact.models.model_files import shard_names
from transact.models.stock import check_code, load_model


def check_folder(folder: Path) -> Geometry:
    """Return the dimensions of a complete folder that transformers loads, with code of this program at most.

    Raises:
        ValueError: one line that names the folder and what is wrong.
    """
    try:
        config = read_json(folder / "config.json")
        check_supported(config, as_parent=False)
        check_files(folder, as_parent=False)
        check_code(folder)
        return read_geometry(config)
    except FileNotFoundError:
        raise ValueError(f"{str(folder)!r} is no model folder: it holds no config.json") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{str(folder)!r}: {one_line(error)}") from None


def load(folder: Path, dtype: str, device: torch.device) -> Any:
    """Return the model of a folder, ready for inference on the device."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = load_model(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(device).eval()


def choose_device(name: str) -> torch.device:
    """Return the device of this name; auto is a GPU if there is one.

    Raises:
        ValueError: there is no GPU, but it was asked for.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device='cuda' is not allowed: torch sees no GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


PARENT = "parent"  # the role that others are compared with
WARM_UP_TOKENS = 3

Turns = dict[str, list[dict[int, dict[str, Any]]]]  # role -> its turns, each: new tokens -> phase -> seconds


def measure(
    folders: Mapping[str, Path],
    config: EfficiencyConfig,
    *,
    dtype: str,
    device: torch.device,
    prompts: torch.Tensor | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Measure what running each model costs.

    Args:
        folders: by role; where there is a "parent", the others are compared with it.
        dtype: of weights and computation, the same for all.
        prompts: (prompts, prompt_tokens) of text, after which the last model is tried as the parent's draft; None: it
            is not.
        progress: called with the number of tokens that were made, or left out for lack of time.

    Returns:
        "models": role -> counts, "settings", and "latency": a row for each batch size, prompt length and number of
        new tokens, with the turns that there was time for. "left_out": what there was no time for; "not_measured":
        the reason where that is everything. "draft": what `measure_draft` returns; None without prompts.
    """
    geometries = {role: geometry_of(folder) for role, folder in folders.items()}
    models = {role: load(folder, dtype, device) for role, folder in folders.items()}
    clock = Clock(device=device, threads=config.threads)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    patience = Patience(60 * config.max_minutes)

    def turns(what: str, seconds: float, tokens: int) -> int:
        """Return the turns that there is time for; the others are left out, with their tokens."""
        number = patience.turns(config.turns, seconds)
        if number < config.turns:
            left_out.append(f"{what}: {config.turns - number} of {config.turns} turns")
            progress((config.turns - number) * tokens)
        return number

    marks, vocabulary = sorted(config.new_tokens), min(geometry.vocab_size for geometry in geometries.values())
    with limited_threads(config.threads, device):
        for batch_size, prompt_tokens in product(config.batch_sizes, config.prompt_tokens):
            prompt = random_prompt(vocabulary, batch_size, prompt_tokens, device)
            seconds = _warm_up(models, prompt, clock).seconds(marks[-1])
            number = turns(
                f"{prompt_tokens} tokens of prompt, batch size {batch_size}", seconds, len(models) * marks[-1]
            )
            if number:
                taken = _take_turns(models, prompt, number, marks, clock, progress)
                rows += [_row(new, prompt, taken, models, geometries, clock) for new in marks]
        draft = None
        if prompts is not None:
            new, prompts = config.new_tokens[0], prompts.to(device)
            generations = 2 * len(prompts)  # one prompt at a time, with the parent alone and with both
            seconds = generations * _warm_up(models, prompts[:1], clock).seconds(new)
            number = turns("the draft", seconds, generations * new)
            if number:
                helper = [*models.values()][-1]
                draft = measure_draft(models[PARENT], helper, prompts, new, number, clock, progress)
    return {
        "models": {role: describe(folders[role], geometry, dtype) for role, geometry in geometries.items()},
        "settings": asdict(config) | {"dtype": dtype, "device": device.type, "clock": clock.basis},
        "latency": rows,
        "left_out": left_out,
        "draft": draft,
        "not_measured": None
        if rows
        else f"one turn takes longer than eval.efficiency.max_minutes={config.max_minutes:g}",
    }


class Patience:
    """A time limit, which runs from its construction on."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def turns(self, wanted: int, seconds_per_turn: float) -> int:
        """Return the turns that there is time for, at most as many as are wanted."""
        left = self._until - time.monotonic()
        return max(0, min(wanted, int(left / seconds_per_turn)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What all models together take, in seconds of wall time: for the prompt, and for a step of decode."""

    prefill: float
    decode: float

    def seconds(self, new_tokens: int) -> float:
        """Return the seconds for so many tokens after the prompt, of which prefill makes the first."""
        return self.prefill + (new_tokens - 1) * self.decode


def _warm_up(models: Mapping[str, Any], prompt: torch.Tensor, clock: Clock) -> Pace:
    """Warm up every model and return their pace."""
    found = [generate(model, prompt, [WARM_UP_TOKENS], clock.read)[WARM_UP_TOKENS] for model in models.values()]
    prefill, decode = (sum(each[phase].wall for each in found) for phase in ("prefill", "decode"))
    return Pace(prefill=prefill, decode=decode)


def describe(folder: Path, geometry: Geometry, dtype: str) -> dict[str, Any]:
    """Return what dimensions and files say without running anything; KV bytes are those of a cache in this dtype."""
    return {
        "parameters": geometry.parameters(),
        "file_bytes": sum((folder / name).stat().st_size for name in shard_names(folder)),
        "kv_bytes_per_token": geometry.kv_bytes_per_token(getattr(torch, dtype).itemsize),
        "geometry": geometry.to_dict(),
    }


def tokens_to_make(config: EfficiencyConfig, models: int) -> int:
    """Return the number of tokens that `measure` reports to `progress` in all."""
    settings = len(config.batch_sizes) * len(config.prompt_tokens)
    drafted = 2 * PROMPTS * config.turns * config.new_tokens[0] if config.draft else 0
    return settings * config.turns * models * max(config.new_tokens) + drafted


@contextmanager
def limited_threads(threads: int, device: torch.device) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take_turns(
    models: Mapping[str, Any],
    prompt: torch.Tensor,
    number: int,
    marks: list[int],
    clock: Clock,
    progress: Callable[[int], None],
) -> Turns:
    """Run every model once in each turn, so that what disturbs the machine disturbs all alike; the order alternates.

    marks: numbers of new tokens, ascending.
    """
    turns: Turns = {role: [] for role in models}
    for turn in range(number):
        for role in list(models)[:: -1 if turn % 2 else 1]:
            turns[role].append(generate(models[role], prompt, marks, clock.read))
            progress(marks[-1])
    return turns


def _row(
    new_tokens: int,
    prompt: torch.Tensor,
    turns: Turns,
    models: Mapping[str, Any],
    geometries: Mapping[str, Geometry],
    clock: Clock,
) -> dict[str, Any]:
    batch_size, prompt_tokens = prompt.shape
    here: dict[str, Sequence[Turn]] = {role: [turn[new_tokens] for turn in each] for role, each in turns.items()}
    found: dict[str, Any] = {}
    for role, model in models.items():
        geometry = geometries[role]
        found[role] = medians(here[role])
        found[role]["prefill"]["flops"] = batch_size * geometry.prefill_flops(prompt_tokens)
        context = prompt_tokens + new_tokens // 2  # of the step in the middle
        found[role]["decode"]["flops"] = batch_size * geometry.flops_per_token(context)
        found[role]["decode"]["bytes"] = geometry.decode_bytes(context, batch_size, model.dtype.itemsize)
        found[role]["peak_bytes"] = peak_bytes(model, prompt, new_tokens)
    row = {
        "batch_size": batch_size,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "turns": len(next(iter(turns.values()))),
        "models": found,
    }
    if PARENT in found:
        row["speed_ups"] = {
            role: speed_ups(here[PARENT], here[role], _allowed(found[PARENT], each), clock.basis)
            for role, each in found.items()
            if role != PARENT
        }
    return row


def _allowed(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, float]:
    """Return the speed-up that each phase allows: FLOPs bound prefill, bytes bound decode."""
    units = {"prefill": "flops", "decode": "bytes"}
    return {phase: parent[phase][unit] / child[phase][unit] for phase, unit in units.items()}
