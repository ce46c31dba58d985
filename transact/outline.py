"""What a run will do, worked out from the configuration and the parent's dimensions alone."""

from __future__ import annotations

from dataclasses import dataclass

from transact.config import PruneConfig, RecoverConfig, RunConfig
from transact.geometry import Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One turn of the chain: calibrate, plan, slice, recover, evaluate."""

    number: int  # from 1
    geometry: Geometry  # after the cut
    asked: float | None  # share of the parent's parameters to be gone after this round
    tokens: int  # of recovery
    first_sequence: int  # position of recovery in the training text
    learning_rate: float

    @property
    def folder_name(self) -> str:
        return f"round_{self.number:02d}"


def tokens_per_batch(config: RunConfig) -> int:
    return config.recover.batch_sequences * config.data.sequence_length


def geometries(config: PruneConfig, parent: Geometry) -> tuple[list[Geometry], list[float]]:
    """Dimensions after each round, and the cumulative fraction that each round was asked for.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    from transact.prune.budget import Multiples, explicit_geometry, removed_fraction, solve_rounds
    from transact.prune.schedule import removed_fractions

    multiples = Multiples(head_dim=config.multiple.head_dim, intermediate_size=config.multiple.intermediate_size)
    final = None
    total = config.remove_fraction
    if total is None:
        final = explicit_geometry(parent, config.head_dim, config.intermediate_size)
        total = removed_fraction(parent, final)
    fractions = removed_fractions(total, config.rounds, config.schedule)
    return solve_rounds(parent, fractions, multiples, final), fractions


def pruning_rounds(config: RunConfig, parent: Geometry) -> list[Round]:
    """The rounds of `mode=prune`.

    Raises:
        ValueError: the request cannot be met with this parent.
    """
    dimensions, fractions = geometries(config.prune, parent)
    tokens = _token_budgets(config.recover, config.prune.rounds, tokens_per_batch(config))
    rates = config.recover.learning_rates or [config.recover.learning_rate] * config.prune.rounds
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
            )
        )
        position += tokens[index] // config.data.sequence_length
    return rounds


def pretraining_round(config: RunConfig, geometry: Geometry) -> Round:
    """The single round of `mode=pretrain`: recovery from a random start, nothing cut."""
    (tokens,) = _token_budgets(config.recover, 1, tokens_per_batch(config))
    return Round(
        number=1,
        geometry=geometry,
        asked=None,
        tokens=tokens,
        first_sequence=0,
        learning_rate=config.recover.learning_rate,
    )


def _token_budgets(config: RecoverConfig, rounds: int, per_batch: int) -> list[int]:
    from transact.prune.schedule import token_budgets

    return token_budgets(config.tokens, config.token_shares, rounds, per_batch)


def reserved_sequences(config: RunConfig) -> int:
    """Sequences of the training text that are never trained on: for validation and calibration."""
    return config.recover.validation_sequences + config.prune.calibration_sequences
