"""What a recovery trains, and how much that is: all weights, or low-rank adapters beside frozen ones."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from transact.config.pruning import RecoverConfig
from transact.config.setting import require
from transact.geometry import Geometry

EXTRA = "pip install 'transact[lora]'"


def check_adapters(config: RecoverConfig) -> None:
    """Raise ValueError if adapters are to be trained and peft, which they are of, is not installed."""
    installed = config.method == "full" or importlib.util.find_spec("peft") is not None
    require("recover.method", config.method, installed, f"peft is not installed ({EXTRA})")


def adapter_parameters(geometry: Geometry, config: RecoverConfig) -> int | None:
    """Return the number of parameters in all adapters; None where all weights are trained."""
    lora = config.lora
    return None if config.method == "full" else geometry.adapter_parameters(lora.rank, lora.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Numbers of the parameters that have gradients and an optimizer.

    Attributes:
        parameters: all of them.
        of_layer: in the layer that has the most.
        largest: in the largest tensor.
        beside: of all of them, those that the model has besides its weights.
        added_width: what an adapter's inner activations of a token add to a layer's, in elements.
    """

    parameters: int
    of_layer: int
    largest: int
    beside: int = 0
    added_width: int = 0

    @classmethod
    def of(cls, geometry: Geometry, config: RecoverConfig) -> Trained:
        adapters = adapter_parameters(geometry, config)
        if adapters is None:
            return cls(
                parameters=geometry.parameters(),
                of_layer=geometry.largest_layer(),
                largest=geometry.vocab_size * geometry.hidden_size,
            )
        rank, targets = config.lora.rank, config.lora.targets
        layers = [geometry.of_layer(layer) for layer in range(geometry.num_layers)] if geometry.layers else [geometry]
        widest = max(geometry.hidden_size, geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim)
        return cls(
            parameters=adapters,
            of_layer=max(each.adapter_parameters(rank, targets) for each in layers) // geometry.num_layers,
            largest=rank * widest,
            beside=adapters,
            added_width=rank * len(targets),
        )
