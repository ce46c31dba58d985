"""What a run will do, worked out from the configuration and the parent's dimensions alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transact.config.pruning import RESERVED_SPREAD, PruneConfig, RecoverConfig
from transact.config.run import RunConfig
from transact.dimensions import geometries, limits_of, search_space, split_candidates
from transact.geometry import Geometry
from transact.pruning.limits import Limits
from transact.pruning.schedule import peak_learning_rate, token_budgets, validation_steps, warmup_steps
from transact.pruning.shape_rounds import shapes_on_the_way

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
    tokens: int  # of recovery
    first_sequence: int  # position of recovery in the training text
    learning_rate: float
    cuts_pairs_later: bool = False  # a round after this one makes head_dim smaller

    @property
    def folder_name(self) -> str:
        return round_name(self.number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """The plan of a run: solved before it starts, and again for the dimensions that were chosen by measuring.

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


def outline(config: RunConfig, parent: Geometry) -> Outline:
    """Solve what a run will do.

    Args:
        parent: in `mode=pretrain` the model that is trained.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    if config.mode == "pretrain":
        return Outline(parent=parent, rounds=(_pretraining_round(config, parent),), stages=_stages(config))
    is_measured = config.prune.split == "auto"
    return Outline(
        parent=parent,
        rounds=tuple(_pruning_rounds(config, parent)),
        stages=_stages(config),
        candidates=tuple(split_candidates(config.prune, parent)) if is_measured else (),
        limits=limits_of(config.prune, parent),
    )


def towards(config: RunConfig, whole: Outline, final: Geometry, shape: Geometry | None = None) -> Outline:
    """Return the outline of a run whose split has chosen the dimensions after the last round.

    shape: widths for every layer instead, which a search that began with these dimensions has chosen.
    """
    return replace(whole, rounds=tuple(_pruning_rounds(config, whole.parent, final, shape)))


def _pruning_rounds(
    config: RunConfig, parent: Geometry, final: Geometry | None = None, shape: Geometry | None = None
) -> list[Round]:
    dimensions, fractions = geometries(config.prune, parent, final)
    if shape is not None:
        multiple = search_space(config.prune, parent).multiples.intermediate_size
        dimensions = shapes_on_the_way(parent, dimensions, shape, multiple)
    tokens = _token_budgets(config.recover, config.prune.rounds, tokens_per_batch(config))
    rates = peak_rates(config, parent, fractions)
    rounds, position = [], 0
    for index, geometry in enumerate(dimensions):
        rounds.append(
            Round(
                number=index + 1,
                geometry=geometry,
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
        if number == 1 and config.prune.shapes == "layers":
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
