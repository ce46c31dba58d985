"""The methods that the quality benchmark compares: names, and their overrides of `python -m transact.run`."""

from __future__ import annotations

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


Method = tuple[str, ...]  # overrides of the command line


def _baseline(name: str) -> Method:
    return (f"prune/method={name}", *EQUAL, *ONE_ROUND)


# Cut once, not recovered. "default" is what a run does when nothing is said about the method.
ONE_SHOT: dict[str, Method] = {
    "default": ONE_ROUND,
    "obs": (OBS, *ONE_ROUND),
    "obs, equal split": (OBS, *EQUAL, *ONE_ROUND),
    "obs, pairs per layer": (OBS, "prune.method.pair_scope=layer", *ONE_ROUND),
    "obs, pairs per head": (OBS, "prune.method.pair_scope=head", *ONE_ROUND),
    "norms": _baseline("norms"),
    "norms, refit": (
        "prune/method=norms",
        "prune.method.refit=least_squares",
        "prune.method.ridge_unit=mean",
        *EQUAL,
        *ONE_ROUND,
    ),
    "paper_heads": _baseline("paper_heads"),
    "paper_heads, auto split": ("prune/method=paper_heads", "prune.split=auto", *ONE_ROUND),
    "paper_dims": _baseline("paper_dims"),
    "taylor": _baseline("taylor"),
    "magnitude": _baseline("magnitude"),
    "random": _baseline("random"),
}

ENTROPY = "recover.objective=cross_entropy"
# Recovered with the same number of tokens in total, whatever the number of rounds, in batches of 16 sequences unless
# they say so.
RECOVERED: dict[str, Method] = {
    "default": ONE_ROUND,
    "default, batches of 2": ("recover.batch_sequences=2", "engine.micro_batch_sequences=2", *ONE_ROUND),
    "obs": (OBS, *ONE_ROUND),
    "obs, cross-entropy": (OBS, *ONE_ROUND, ENTROPY),
    "obs, equal split": (OBS, *EQUAL, *ONE_ROUND),
    "obs, 2 rounds": (OBS, "prune.rounds=2", "recover.token_shares=[1,3]"),
    "obs, 8 shots": (OBS, *EIGHT_SHOTS),
    "paper recipe": ("prune/method=paper_heads", *EQUAL, ENTROPY, *EIGHT_SHOTS),
    "paper_heads, one shot": ("prune/method=paper_heads", *EQUAL, ENTROPY, *ONE_ROUND),
}
