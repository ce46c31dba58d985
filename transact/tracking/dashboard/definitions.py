"""What the two workspaces show: names of figures only, so that tests can compare them with what runs log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curves:
    """Figures of the history over one of its axes."""

    title: str
    names: tuple[str, ...]
    axis: str = "tokens"
    is_logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Points:
    """One point for each run: one figure of its summary against another."""

    title: str
    x: str
    y: str


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    panels: tuple[Curves | Points, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    name: str
    sections: tuple[Section, ...]

    def names(self) -> set[str]:
        """Return the names of all figures that it shows."""
        found: set[str] = set()
        for section in self.sections:
            for panel in section.panels:
                found |= {panel.x, panel.y} if isinstance(panel, Points) else set(panel.names)
        return found


ROUND = "prune/round"
RUNS = Definition(
    name="transact runs",
    sections=(
        Section(
            "Recovery",
            (
                Curves("Training loss (distillation: divergence from the parent), nats per token", ("recover/loss",)),
                Curves("Validation cross-entropy, nats per token", ("recover/validation_cross_entropy",)),
                Curves("Validation perplexity", ("recover/validation_perplexity",), is_logarithmic=True),
                Curves("Learning rate", ("recover/lr",)),
                Curves("Gradient norm", ("recover/grad_norm",), is_logarithmic=True),
            ),
        ),
        Section(
            "Rounds",
            (
                Curves(
                    "Perplexity, held-out text",
                    ("eval/perplexity_dense", "eval/perplexity_sliced", "eval/perplexity_recovered"),
                    ROUND,
                ),
                Curves("Parameters", ("prune/parameters",), ROUND),
                Curves("head_dim", ("prune/head_dim",), ROUND),
                Curves("intermediate_size", ("prune/intermediate_size",), ROUND),
            ),
        ),
        Section(
            "Activations",
            (
                Curves("Share of the squares that is kept", ("calibrate/kept_energy",), ROUND),
                Curves("Norms", ("calibrate/norm_mean", "calibrate/norm_max"), ROUND, is_logarithmic=True),
            ),
        ),
        Section(
            "Speed and memory",
            (
                Curves("Tokens per second", ("perf/tokens_per_s", "perf/tokens_per_s_per_gpu")),
                Curves("MFU", ("perf/mfu",)),
                Curves("Seconds", ("perf/step_s", "perf/data_s", "perf/checkpoint_s")),
                Curves(
                    "Peak memory of the fullest rank, GiB",
                    ("mem/host_peak_gib", "mem/allocated_peak_gib", "mem/reserved_peak_gib"),
                ),
            ),
        ),
    ),
)

SWEEPS = Definition(
    name="transact sweeps",
    sections=(
        Section(
            "Trade-off",
            (
                Points("Perplexity over parameters", "result/parameters", "result/perplexity"),
                Points("Perplexity over the KV cache", "result/kv_bytes_per_token", "result/perplexity"),
                Points("Perplexity over prefill speed-up", "efficiency/prefill_speed_up", "result/perplexity"),
                Points("Perplexity over decode speed-up", "efficiency/decode_speed_up", "result/perplexity"),
            ),
        ),
        Section(
            "Recovery", (Curves("Validation perplexity", ("recover/validation_perplexity",), is_logarithmic=True),)
        ),
    ),
)
