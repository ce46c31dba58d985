"""Mistral 7B and its like: a LLaMA, with or without a sliding window."""

from __future__ import annotations

from transact.models.family import Config, Family, refuse_biases

STOCK_WINDOW = 4096  # where config.json is silent; null is no window


def _window(config: Config) -> int | None:
    return config.get("sliding_window", STOCK_WINDOW)


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    configuration="MistralConfig",
    has_own_frequencies=True,
    window=_window,
    check=refuse_biases,
)
