"""Mistral 7B and its like: a LLaMA, with or without a sliding window."""

from __future__ import annotations

from transact.models.family import Config, Family, refuse_if_true


def _window(config: Config) -> int | None:
    return config.get("sliding_window")


def _check(config: Config) -> None:
    refuse_if_true(config, "attention_bias", "mlp_bias")


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    configuration="MistralConfig",
    has_own_frequencies=True,
    window=_window,
    check=_check,
)
