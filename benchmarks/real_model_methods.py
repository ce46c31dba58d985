"""The rows that are measured on a real model: how a method is named, and what it is on the command line."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality_methods import BASELINES, ENTROPY
from benchmarks.real_model_inputs import MeasuredText
from benchmarks.trials import of_all_parameters
from transact.config.compose import compose_config, method_preset
from transact.config.run import RunConfig
from transact.errors import Refusal
from transact.launch.from_python import overrides_of
from transact.models.folder import geometry_of

FLAP = "flap"
DENSE = "dense"
HALF_CACHE = "half the cache"  # parameters and KV bytes are limits, instead of a fraction
METHODS = (
    "default",
    "default, layers",
    "default, equal split",
    "parallel",
    "obs",
    "obs, equal split",
    *BASELINES,
    FLAP,
)
ADDITIONS = {
    "equal split": "prune.split=equal",
    "auto split": "prune.split=auto",
    "refit": "prune.method.refit=least_squares",
    "no refit": "prune.method.refit=none",
    "sequential": "prune.method.refit=sequential",
    "layers": "prune.shapes=layers",
    "pairs per layer": "prune.method.pair_scope=layer",
    "pairs per head": "prune.method.pair_scope=head",
    "lora": "recover.method=lora",
    HALF_CACHE: "prune=half_cache",
}
ROUNDS = {f"{count} rounds": count for count in (2, 4, 8)}  # additions of rows after recovery
RECIPES_ROUNDS = 8  # of TransAct's own, `recover=paper`


def paper_recipe(rounds: int) -> list[str]:
    """Return TransAct's recipe of eight rounds, in the batches of the other recoveries.

    With fewer, each round merges consecutive ones of the eight: it has all their tokens, and the last one's learning
    rate.
    """
    paper = compose_config(["name=recipe", "recover=paper", f"prune.rounds={RECIPES_ROUNDS}"]).recover
    assert paper.token_shares is not None and paper.learning_rates is not None
    size = RECIPES_ROUNDS // rounds
    shares = [sum(paper.token_shares[first : first + size]) for first in range(0, RECIPES_ROUNDS, size)]
    return [
        "prune/method=paper_heads",
        "prune.split=equal",
        f"prune.rounds={rounds}",
        f"recover.token_shares={shares}",
        f"recover.learning_rates={paper.learning_rates[size - 1 :: size]}",
        "recover.decay=linear",
        "recover.final_learning_rate_fraction=0",
        "recover.warmup_fraction=0.1",
        ENTROPY,
    ]


PAPER_RECIPE = "paper recipe"
RECIPES = {PAPER_RECIPE: RECIPES_ROUNDS, f"{PAPER_RECIPE}, 1 round": 1} | {
    f"{PAPER_RECIPE}, {name}": count for name, count in ROUNDS.items() if count < RECIPES_ROUNDS
}
MICRO_BATCH = 4  # sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row to measure.

    Attributes:
        method: a name of conf/prune/method, `flap`, "paper recipe" or "dense", with additions after commas; several
            rounds ("2 rounds") where it recovers.
        fraction: of the transitional parameters to remove; 0 for the dense model.
        tokens: of recovery, over all rounds.
        tasks: whether tasks are run, instead of perplexities.
    """

    method: str
    fraction: float
    tokens: int = 0
    tasks: bool = False

    def check(self) -> None:
        """Raise ValueError unless there is such a method, and its rounds are all done."""
        if self.method == DENSE:
            return
        config = compose_config(["name=row", *method_overrides(self.method)])
        is_flap = preset_of(self.method) == FLAP  # whose first selection alone is another
        if config.prune.rounds > 1 and (is_flap or not self.tokens):
            raise Refusal(
                f"{self.method!r} has {config.prune.rounds} rounds: models are cut once but in rows after recovery "
                f"(--recover with --recovered), and by {FLAP}"
            )

    @property
    def name(self) -> str:
        parts = [self.method, *([f"{self.fraction:.0%}"] if self.fraction else [])]
        parts += [f"{self.tokens:,} tokens"] if self.tokens else []
        return ", ".join(parts + (["tasks"] if self.tasks else []))


def preset_of(method: str) -> str:
    return method.split(", ")[0]


def method_overrides(method: str) -> list[str]:
    """Return the overrides of the command line that choose a method.

    FLAP cuts whole heads as TransAct does: the selection alone is another. Baselines cut attention and MLP by the same
    share, other methods by the measured split.

    Raises:
        ValueError: there is no such method, or no such addition.
    """
    if method in RECIPES:
        return paper_recipe(RECIPES[method])
    preset, *additions = method.split(", ")
    for each in additions:
        if each not in ADDITIONS | ROUNDS:
            raise Refusal(f"--methods: {each!r} in {method!r} is not one of {', '.join(ADDITIONS | ROUNDS)}")
    rounds = [ROUNDS[each] for each in additions if each in ROUNDS] or [1]
    if len(rounds) > 1:
        raise Refusal(f"--recovered: {method!r} names several numbers of rounds")
    choice = "paper_heads" if preset == FLAP else preset
    method_preset(choice)
    split = "equal" if preset in (*BASELINES, FLAP) else "auto"
    return [
        f"prune/method={choice}",
        f"prune.split={split}",
        f"prune.rounds={rounds[0]}",
        *(ADDITIONS[each] for each in additions if each in ADDITIONS),
    ]


def with_and_without_refit(method: str) -> list[str]:
    """Return a method as it is, and with the refit added, or without the one that it has and can do without."""
    preset = preset_of(method)
    refit = method_preset("paper_heads" if preset == FLAP else preset).refit
    other = "refit" if refit == "none" else "no refit"
    additions = method.split(", ")[1:]
    is_fixed = any("prune.method.refit=" in ADDITIONS.get(each, "") for each in additions) or "layers" in additions
    return [method] if is_fixed else [method, f"{method}, {other}"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What all rows share. work: folder for what is made on the way; settings: what the figures depend on."""

    model: Path
    text: MeasuredText
    work: Path
    settings: dict[str, Any]
    tasks: list[str]

    def overrides(self, row: Row) -> list[str]:
        """Return what chooses a row on the command line of `transact.run`, but for output_dir and data.token_store."""
        chosen, settings = [], self.settings
        if row.method != DENSE:
            removed = of_all_parameters(row.fraction, geometry_of(self.model))
            limited = HALF_CACHE in row.method.split(", ")
            size = f"prune.budget.parameters={1 - removed}" if limited else f"prune.remove_fraction={removed}"
            chosen = [*method_overrides(row.method), size]
        first, *others = self.text.held_out.items()
        evaluation = {"text_sequences": settings["evaluation_sequences"]}
        groups = {
            "model": {"path": str(self.model.resolve())},
            "data": {
                "train": {"files": [str(self.text.train.resolve())]},
                "evaluation": {"files": [str(first[1].resolve())]},
                "sequence_length": settings["sequence_length"],
                "evaluation_sequences": settings["evaluation_sequences"],
            },
            "prune": {
                "calibration_sequences": settings["calibration_sequences"],
                "multiple": dict.fromkeys(("head_dim", "intermediate_size"), settings["multiple"]),
            },
            "recover": {
                "tokens": row.tokens,
                "validation_sequences": settings["validation_sequences"],
            },
            # The batch of recovery follows from its tokens, whatever would be computed at a time.
            "engine": {"micro_batch_sequences": 1 if row.tokens else MICRO_BATCH},
            "eval": evaluation,
            "track": {"mode": "disabled", "progress_seconds": 3600},
            "seed": settings["seed"],
        }
        if row.tasks:
            evaluation["task_limit"] = settings["task_limit"]
            more = [f"+eval.tasks.{name}=0" for name in self.tasks]
            more.append(f"eval.task_folders=['{(self.work / 'tasks').resolve()}']")
        else:
            files = {name: f"{{source:files,files:['{path.resolve()}']}}" for name, path in others}
            more = [f"+eval.texts.{name}={text}" for name, text in files.items()]
        return ["data=local", *chosen, *overrides_of(groups), *more]

    def config(self, row: Row) -> RunConfig:
        places = [f"output_dir={self.row_folder(row)}", f"data.token_store={self.work / 'tokens'}"]
        return compose_config(["name=real_model", *self.overrides(row), *places])

    def row_folder(self, row: Row) -> Path:
        return self.work / "rows" / hashlib.sha256(row.name.encode()).hexdigest()[:12]
