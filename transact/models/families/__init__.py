"""The families, a file each."""

from __future__ import annotations

from transact.models.families.llama import LLAMA, TRANSACT_LLAMA
from transact.models.families.mistral import MISTRAL
from transact.models.families.qwen2 import QWEN2
from transact.models.families.qwen3 import QWEN3
from transact.models.family import Config, Family

STOCK_FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)
FAMILIES = {family.model_type: family for family in (*STOCK_FAMILIES, TRANSACT_LLAMA)}
STOCK_TYPES = tuple(family.model_type for family in STOCK_FAMILIES)


def family_of(config: Config) -> Family:
    """The family of a config.json that was checked before; LLaMA where it does not say."""
    return FAMILIES[config.get("model_type", LLAMA.model_type)]
