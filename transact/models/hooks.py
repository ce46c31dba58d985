"""Collect activation statistics of a LLaMA with forward hooks.

Hooks see activations only, never weights, so they work unchanged on a model whose parameters are
partitioned over ranks (ZeRO-3). Every rank must run the same number of forwards there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transact.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from transact.prune.statistics import ActivationStatistics


class Collector:
    """Running sums of squares of one model on one rank.

    Attributes:
        enabled: set to False for a forward that must not count, such as a batch that only keeps
            a rank in step with the others.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.enabled = True
        self._geometry = geometry
        # On the activation's own device: moving each sum would wait for the device every time.
        self._sums: dict[tuple[str, int], Tensor] = {}

    def add(self, kind: str, layer: int, energy: Tensor) -> None:
        """Add the float64 sums of one forward; ``kind`` is a field of `ActivationStatistics`."""
        key = (kind, layer)
        self._sums[key] = self._sums[key] + energy if key in self._sums else energy

    def statistics(self, num_tokens: int) -> ActivationStatistics:
        """What was summed so far, on the CPU.

        Args:
            num_tokens: tokens in the counted forwards of this rank.
        """
        from dataclasses import replace

        from transact.prune.statistics import ActivationStatistics

        collected = replace(ActivationStatistics.zeros(self._geometry), num_tokens=num_tokens)
        for (kind, layer), energy in self._sums.items():
            getattr(collected, kind)[layer] = energy.cpu()
        return collected


@contextmanager
def collect_statistics(model: nn.Module, geometry: Geometry) -> Iterator[Collector]:
    """Watch the forwards of a ``LlamaForCausalLM`` until the block ends.

    Put the model in eval mode: with activation checkpointing a training step runs every layer's
    forward, and so its hooks, twice.

    Args:
        model: the model itself, not the engine around it.
        geometry: its dimensions.
    """
    collector = Collector(geometry)
    handles: list[RemovableHandle] = []
    try:
        for layer, block in enumerate(_decoder_layers(model)):
            handles += _attach(collector, geometry, layer, block)
        yield collector
    finally:
        for handle in handles:
            handle.remove()


def _decoder_layers(model: Any) -> Any:
    return model.model.layers


def _attach(collector: Collector, geometry: Geometry, layer: int, block: Any) -> list[RemovableHandle]:
    """Hook one decoder layer."""
    from transact.prune.statistics import channel_energy, rotary_pair_energy

    def pairs_of(num_heads: int) -> Callable[[Tensor], Tensor]:
        return lambda activation: rotary_pair_energy(activation, num_heads, geometry.head_dim)

    def dims_per_head(activation: Tensor) -> Tensor:
        return channel_energy(activation).view(-1, geometry.head_dim)

    def after(kind: str, energy_of: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if collector.enabled:
                collector.add(kind, layer, energy_of(output))

        return hook

    def before(kind: str, energy_of: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if collector.enabled:
                collector.add(kind, layer, energy_of(inputs[0]))

        return hook

    attention, mlp = block.self_attn, block.mlp
    query, key = pairs_of(geometry.num_attention_heads), pairs_of(geometry.num_key_value_heads)
    return [
        attention.q_proj.register_forward_hook(after("query", query)),
        attention.k_proj.register_forward_hook(after("key", key)),
        attention.o_proj.register_forward_pre_hook(before("attention_output", dims_per_head)),
        mlp.down_proj.register_forward_pre_hook(before("intermediate", channel_energy)),
    ]
