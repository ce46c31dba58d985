"""LLaMA 1 to 3 and what is built like it."""

from __future__ import annotations

from transact.models.family import Family, refuse_biases

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    configuration="LlamaConfig",
    heads_divide_hidden_size=True,
    has_own_frequencies=True,
    required=(),
    check=refuse_biases,
)
# A LLaMA whose layers or heads kept different rotary pairs: no stock class, so no stock name.
TRANSACT_LLAMA = Family(
    model_type="transact_llama",
    architecture="TransactLlamaForCausalLM",
    configuration="LlamaConfig",
    has_own_frequencies=True,
    required=(),
)
