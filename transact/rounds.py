"""What a run will do, worked out from the configuration and the parent's dimensions alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from transact.config.pruning import RESERVED_SPREAD, BudgetConfig, PruneConfig, RecoverConfig
from transact.config.run import RunConfig
from transact.errors import one_line
from transact.files import read_json
from transact.geometry import Geometry
from transact.pruning.latency import LatencyTable
from transact.pruning.limits import Limits, Serving, most_balanced, widest_of_each, within
from transact.pruning.schedule import (
    peak_learning_rate,
    remove_fractions,
    token_budgets,
    validation_steps,
    warmup_steps,
)
from transact.pruning.search_space import Budget, SearchSpace, explicit_geometry, reached_fraction, solve_rounds, splits
from transact.pruning.targets import multiples_for

# Kinds of stages whose output only later stages read; the output of the others is the result of the run.
ON_THE_WAY = {"initialise", "calibrate", "gram", "split", "shapes", "select", "slice", "recover"}


def round_name(number: int) -> str:
    """Return the name of a round's folder; 0 is the parent's."""
    return f"round_{number:02d}"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the chain.

    Attributes:
        kind: "calibrate", "export" and so on.
        round: number of the round that it belongs to, 0 for the parent; None: it belongs to the whole run.
    """

    kind: str
    round: int | None = None

    @property
    def name(self) -> str:
        """Name in run.json: "round_01/calibrate"."""
        return self.kind if self.round is None else f"{round_name(self.round)}/{self.kind}"

    @classmethod
    def named(cls, name: str) -> Stage:
        """Return the stage that has this name in run.json."""
        folder, _, kind = name.rpartition("/")
        return cls(kind, int(folder.removeprefix("round_")) if folder else None)

    @property
    def is_result(self) -> bool:
        """Whether the output is a result of the run, and not only read by later stages."""
        return self.kind not in ON_THE_WAY


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One turn of the chain: calibrate, select, slice, recover, evaluate."""

    number: int  # from 1
    geometry: Geometry  # after the cut
    asked: float | None  # share of the parent's parameters to be gone after this round; None: nothing is cut
    tokens: int  # of recovery
    first_sequence: int  # position of recovery in the training text
    learning_rate: float
    cuts_pairs_later: bool = False  # a round after this one makes head_dim smaller

    @property
    def folder_name(self) -> str:
        return round_name(self.number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """The plan of a run: solved before it starts, and again for the dimensions that a measured split has chosen.

    Attributes:
        parent: dimensions before the first cut.
        rounds: in order.
        stages: in order.
        candidates: dimensions that `prune.split=auto` measures; empty where nothing is to be measured.
        limits: of prune.budget, as they were read when the run was solved; None without any.
    """

    parent: Geometry
    rounds: tuple[Round, ...]
    stages: tuple[Stage, ...]
    candidates: tuple[Geometry, ...] = ()
    limits: Limits | None = None

    @property
    def ends(self) -> tuple[Geometry, ...]:
        """Every set of dimensions that the run may end with."""
        return self.candidates or (self.rounds[-1].geometry,)

    @property
    def tokens(self) -> int:
        """Recovery tokens of all rounds."""
        return sum(each.tokens for each in self.rounds)

    def before(self, number: int) -> Geometry:
        """Return the dimensions of the model that a round cuts."""
        return self.parent if number == 1 else self.rounds[number - 2].geometry

    def at_work(self, stage: Stage) -> Geometry:
        """Return the dimensions of the model that a stage of a round works on."""
        assert stage.round is not None
        if stage.kind in ("calibrate", "gram", "shapes"):
            return self.before(stage.round)
        return self.rounds[stage.round - 1].geometry if stage.round else self.parent


def tokens_per_batch(config: RunConfig) -> int:
    """Return the tokens of one optimizer step over all ranks."""
    return config.recover.batch * config.data.sequence_length


def geometries(
    config: PruneConfig, parent: Geometry, final: Geometry | None = None
) -> tuple[list[Geometry], list[float]]:
    """Return the dimensions after each round, and the cumulative fraction that each round was asked for.

    Args:
        final: dimensions after the last round where they are known already.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    limits = limits_of(config, parent)
    if config.remove_fraction is None and limits is None:
        final = explicit_geometry(parent, config.head_dim, config.intermediate_size)
        _check_suits(config, parent, final)
    elif config.head_dim is not None:
        final = _with_head_dim(config, parent, config.head_dim)
    elif limits is not None and final is None:
        final = most_balanced(limits, _possible(config, parent))
    total = config.remove_fraction
    if total is None:
        assert final is not None
        total = reached_fraction(parent, final)
    fractions = remove_fractions(total, config.rounds, config.schedule, config.round_shares)
    return solve_rounds(search_space(config, parent), fractions, final), fractions


def limits_of(config: PruneConfig, parent: Geometry) -> Limits | None:
    """Return the limits of prune.budget; None without one.

    Raises:
        ValueError: the table of latencies cannot be read, or is of another model.
    """
    budget, asked = config.budget, config.budget.asked()
    if not asked:
        return None
    served = {each.name: getattr(budget, each.name) for each in fields(Serving) if each.name != "latency"}
    return Limits(parent=parent, serving=Serving(**served, latency=_latency_table(budget, parent)), asked=asked)


def _latency_table(budget: BudgetConfig, parent: Geometry) -> LatencyTable | None:
    if budget.latency_table is None:
        return None
    try:
        return LatencyTable.from_json(read_json(Path(budget.latency_table)), budget.latency_phase, parent)
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise ValueError(f"prune.budget.latency_table={budget.latency_table!r}: {reason}") from None


def _possible(config: PruneConfig, parent: Geometry) -> list[Geometry]:
    """Return every way to share the cut that is asked for between attention and MLP, from most attention kept to least.

    Raises:
        ValueError: it cannot be had of this parent.
    """
    space, limits = search_space(config, parent), limits_of(config, parent)
    if limits is not None:
        return within(limits, space)
    assert config.remove_fraction is not None
    return splits(Budget(parent=parent, remove_fraction=config.remove_fraction), space)


def _asked(config: PruneConfig) -> str:
    """Return how much is to be cut, as it is given on the command line."""
    if config.remove_fraction is not None:
        return f"prune.remove_fraction={config.remove_fraction:g}"
    return " ".join(f"prune.budget.{name}={limit:g}" for name, limit in config.budget.asked().items())


def split_candidates(config: PruneConfig, parent: Geometry) -> list[Geometry]:
    """Return the dimensions that `prune.split=auto` measures, evenly spaced where there are more than it may try.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    found = _possible(config, parent)
    if not found:
        raise ValueError(f"prune.split=auto finds no dimensions for {_asked(config)}: use prune.split=equal")
    limit = min(config.split_candidates, len(found))
    if limit == 1:
        return found[:1]
    return [found[round(place * (len(found) - 1) / (limit - 1))] for place in range(limit)]


def _with_head_dim(config: PruneConfig, parent: Geometry, head_dim: int) -> Geometry:
    """Return the dimensions that have this head_dim and are as large as is asked for."""
    limits = limits_of(config, parent)
    # Of limits also what a wider head would meet with as wide an MLP: it is asked for.
    found = widest_of_each(limits, search_space(config, parent)) if limits else _possible(config, parent)
    for geometry in found:
        if geometry.head_dim == head_dim:
            return geometry
    allowed = ", ".join(str(geometry.head_dim) for geometry in found)
    raise ValueError(
        f"prune.head_dim={head_dim} is not allowed: with {_asked(config)} and {_reason(config, 'head_dim')} it can be "
        f"{allowed}"
    )


def _check_suits(config: PruneConfig, parent: Geometry, final: Geometry) -> None:
    """Raise ValueError, with the nearest allowed dimensions, unless the target takes those that were given."""
    multiples = search_space(config, parent).multiples
    for name, below in (
        ("head_dim", multiples.head_dims_below(parent)),
        ("intermediate_size", multiples.intermediate_sizes_below(parent)),
    ):
        given, allowed = getattr(final, name), [*below, getattr(parent, name)]
        if given not in allowed:
            nearest = [*(each for each in allowed if each < given)][-1:] + [each for each in allowed if each > given][
                :1
            ]
            raise ValueError(
                f"prune.{name}={given} is not allowed with {_reason(config, name)}: the nearest allowed is "
                f"{' or '.join(map(str, nearest))}; prune.multiple.{name}, if given, counts instead of the target"
            )


def _reason(config: PruneConfig, dimension: str) -> str:
    """Return the setting that decides which sizes are allowed, as it is given on the command line."""
    own = getattr(config.multiple, dimension)
    return f"prune.target={config.target}" if own is None else f"prune.multiple.{dimension}={own}"


def search_space(config: PruneConfig, parent: Geometry) -> SearchSpace:
    """Return the dimensions that the target takes, unless the configuration says otherwise."""
    found, own = multiples_for(config.target, parent, pairs_are_free=config.rotary_pairs == "free"), config.multiple
    if own.head_dim is not None:
        found = replace(found, head_dim=own.head_dim, head_dims=None, row=1, keeps_attention=False)
    if own.intermediate_size is not None:
        found = replace(found, intermediate_size=own.intermediate_size)
    return SearchSpace.below(parent, found, cuts_heads=config.method.attention == "heads")


def outline(config: RunConfig, parent: Geometry, final: Geometry | None = None) -> Outline:
    """Solve what a run will do.

    Args:
        parent: in `mode=pretrain` the model that is trained.
        final: dimensions after the last round where `prune.split=auto` has found them.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    if config.mode == "pretrain":
        return Outline(parent=parent, rounds=(_pretraining_round(config, parent),), stages=_stages(config))
    is_measured = config.prune.split == "auto"
    return Outline(
        parent=parent,
        rounds=tuple(_pruning_rounds(config, parent, final)),
        stages=_stages(config),
        candidates=tuple(split_candidates(config.prune, parent)) if is_measured else (),
        limits=limits_of(config.prune, parent),
    )


def _pruning_rounds(config: RunConfig, parent: Geometry, final: Geometry | None) -> list[Round]:
    dimensions, fractions = geometries(config.prune, parent, final)
    tokens = _token_budgets(config.recover, config.prune.rounds, tokens_per_batch(config))
    rates = peak_rates(config, parent, fractions)
    rounds, position = [], 0
    for index, geometry in enumerate(dimensions):
        rounds.append(
            Round(
                number=index + 1,
                geometry=geometry,
                asked=fractions[index],
                tokens=tokens[index],
                first_sequence=position,
                learning_rate=rates[index],
                cuts_pairs_later=geometry.head_dim > dimensions[-1].head_dim,
            )
        )
        position += tokens[index] // config.data.sequence_length
    return rounds


def _pretraining_round(config: RunConfig, geometry: Geometry) -> Round:
    """Return the single round of `mode=pretrain`: recovery from random weights, nothing cut."""
    (tokens,) = _token_budgets(config.recover, 1, tokens_per_batch(config))
    return Round(
        number=1,
        geometry=geometry,
        asked=None,
        tokens=tokens,
        first_sequence=0,
        learning_rate=peak_rates(config, geometry, [1.0])[0],
    )


def peak_rates(config: RunConfig, parent: Geometry, remove_fractions: list[float]) -> list[float]:
    """Return each round's peak learning rate: as given, or by the parent's size and the share that is gone by then.

    Adapters have another than all weights.
    """
    given = config.recover.learning_rate
    if config.recover.learning_rates is not None:
        return config.recover.learning_rates
    if given is not None:
        return [given] * len(remove_fractions)
    of_adapters = config.recover.method == "lora"
    return [peak_learning_rate(parent.parameters(), each, of_adapters=of_adapters) for each in remove_fractions]


def _token_budgets(config: RecoverConfig, rounds: int, per_batch: int) -> list[int]:
    return token_budgets(config.tokens, config.token_shares, rounds, per_batch)


def steps_to_validate(num_steps: int, config: RecoverConfig) -> set[int]:
    """Return the steps of a round after which it is validated, besides the validation at its start."""
    warmup = warmup_steps(num_steps, config.warmup_fraction, config.min_warmup_steps)
    return validation_steps(num_steps, config.validations, warmup)


def _stages(config: RunConfig) -> tuple[Stage, ...]:
    stages = _pretraining_stages() if config.mode == "pretrain" else _pruning_stages(config)
    stages.append(Stage("export"))
    if config.export.gguf != "none":
        stages.append(Stage(f"gguf_{config.export.gguf}"))
    if config.export.executorch != "none":
        stages.append(Stage(f"executorch_{config.export.executorch_kind}"))
    if config.mode != "pretrain" and config.eval.efficiency.measured:
        stages.append(Stage("efficiency"))
    if config.export.hub is not None:
        stages.append(Stage("hub"))
    return tuple(stages)


def _pretraining_stages() -> list[Stage]:
    return [Stage("initialise", 0), Stage("recover", 1), Stage("evaluate", 0)]


def _pruning_stages(config: RunConfig) -> list[Stage]:
    stages = [Stage("evaluate", 0)]
    for number in range(1, config.prune.rounds + 1):
        kinds = ["calibrate", "select", "slice", *(["recover"] if config.recover.tokens else []), "evaluate"]
        if number == config.prune.rounds and config.prune.shapes == "layers":
            kinds.insert(1, "shapes")
        if number == 1 and config.prune.split == "auto":
            kinds.insert(1, "split")
        if config.prune.method.needs_gram():
            kinds.insert(1, "gram")
        stages += [Stage(kind, number) for kind in kinds]
    if config.eval.has_more():
        stages.append(Stage("tasks"))
    return stages


def reserved_sequences(config: RunConfig) -> int:
    """Return how many sequences of the training text are never trained on: for validation and calibration."""
    return config.recover.validation_sequences + config.prune.calibration_sequences


def text_sequences(config: RunConfig, tokens: int) -> int:
    """Return how many sequences of the training text the run asks for.

    These are the sequences that it trains on and the reserved ones, and at least all those that the reserved ones are
    drawn from, so that more training leaves calibration as it is. What is asked for counts and not the whole steps
    in it, so that any batch, on any number of ranks and in mode=tokenize, finds the same text.

    Args:
        tokens: of recovery in whole steps, over all rounds: a step in each may be more than is asked for.
    """
    trained = -(-max(tokens, config.recover.tokens) // config.data.sequence_length)
    reserved = reserved_sequences(config)
    return max(reserved + trained, RESERVED_SPREAD * reserved)


SHAPES_OF_A_LAYER = 8  # that a search measures for each layer, where no setting says how many


def shape_evaluations(config: PruneConfig, parent: Geometry) -> int:
    """Return how many shapes a search measures, at most."""
    return config.shape_evaluations or SHAPES_OF_A_LAYER * parent.num_layers
