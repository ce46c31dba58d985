"""The methods that the quality benchmark compares: names, and their overrides of `python -m transact.run`."""

from __future__ import annotations

from dataclasses import dataclass

BASELINES = ("norms", "paper_heads", "paper_dims", "taylor", "magnitude", "random")  # files of conf/prune/method
EIGHT_SHOTS = (
    "prune.rounds=8",
    "recover.token_shares=[7,9,11,13,15,17,19,21]",
    # TransAct's ramp, i / 8 of the peak in shot i. The peak is the one of four that suited this model best.
    "recover.learning_rates=[1.25e-4,2.5e-4,3.75e-4,5e-4,6.25e-4,7.5e-4,8.75e-4,1e-3]",
    "recover.decay=linear",
    "recover.final_learning_rate_fraction=0",
    "recover.warmup_fraction=0.1",
)
ONE_ROUND = ("prune.rounds=1",)
EQUAL = ("prune.split=equal",)
OBS = "prune/method=obs"  # what the default was when most rows were measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method to compare. overrides: of the command line. stock: whether the export loads with transformers."""

    overrides: tuple[str, ...]
    stock: bool = True


def _baseline(name: str) -> Method:
    return Method(overrides=(f"prune/method={name}", *EQUAL, *ONE_ROUND))


def _non_stock(scope: str) -> Method:
    overrides = (OBS, f"prune.method.pair_scope={scope}", *ONE_ROUND)
    return Method(overrides=overrides, stock=False)


# Cut once, not recovered. "default" is what a run does when nothing is said about the method.
ONE_SHOT: dict[str, Method] = {
    "default": Method(overrides=ONE_ROUND),
    "obs": Method(overrides=(OBS, *ONE_ROUND)),
    "obs, equal split": Method(overrides=(OBS, *EQUAL, *ONE_ROUND)),
    "obs, pairs per layer": _non_stock("layer"),
    "obs, pairs per head": _non_stock("head"),
    "norms": _baseline("norms"),
    "norms, refit": Method(
        overrides=(
            "prune/method=norms",
            "prune.method.refit=least_squares",
            "prune.method.ridge_unit=mean",
            *EQUAL,
            *ONE_ROUND,
        )
    ),
    "paper_heads": _baseline("paper_heads"),
    "paper_heads, auto split": Method(overrides=("prune/method=paper_heads", "prune.split=auto", *ONE_ROUND)),
    "paper_dims": _baseline("paper_dims"),
    "taylor": _baseline("taylor"),
    "magnitude": _baseline("magnitude"),
    "random": _baseline("random"),
}

ENTROPY = "recover.objective=cross_entropy"
# Recovered with the same number of tokens in total, whatever the number of rounds, in batches of 16 sequences unless
# they say so.
RECOVERED: dict[str, Method] = {
    "default": Method(overrides=ONE_ROUND),
    "default, batches of 2": Method(
        overrides=("recover.batch_sequences=2", "engine.micro_batch_sequences=2", *ONE_ROUND)
    ),
    "obs": Method(overrides=(OBS, *ONE_ROUND)),
    "obs, cross-entropy": Method(overrides=(OBS, *ONE_ROUND, ENTROPY)),
    "obs, equal split": Method(overrides=(OBS, *EQUAL, *ONE_ROUND)),
    "obs, 2 rounds": Method(overrides=(OBS, "prune.rounds=2", "recover.token_shares=[1,3]")),
    "obs, 8 shots": Method(overrides=(OBS, *EIGHT_SHOTS)),
    "paper recipe": Method(overrides=("prune/method=paper_heads", *EQUAL, ENTROPY, *EIGHT_SHOTS)),
    "paper_heads, one shot": Method(overrides=("prune/method=paper_heads", *EQUAL, ENTROPY, *ONE_ROUND)),
}
