"""Sum statistics and Gram matrices over the activations of a LLaMA-like decoder, with forward hooks.

Hooks see activations only, never weights, so they work unchanged on a model whose parameters are
partitioned over ranks (ZeRO-3). Every rank must run the same number of forwards of such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from transact.geometry import Geometry
from transact.pruning.refit import LayerGram, add_gram, complete_gram
from transact.pruning.statistics import SQUARES, ActivationStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


class Collector:
    """Running sums of one model on one rank.

    Attributes:
        enabled: set to False for a forward that must not count, such as a batch that only keeps
            a rank in step with the others.
    """

    def __init__(self, geometry: Geometry, statistics: Collection[Statistic] = ()) -> None:
        self.enabled = True
        self._geometry = geometry
        self._statistics = statistics
        # On the activation's own device: moving each sum to the CPU would wait for the device every time.
        self._sums: dict[tuple[str, int], Tensor] = {}
        # Apart: they have names of statistics, and stay until each layer's is written.
        self._grams: dict[tuple[str, int], Tensor] = {}

    def add(self, name: str, layer: int, value: Tensor) -> None:
        """Add the float64 sums of one forward; ``name`` is that of a statistic."""
        key = (name, layer)
        if key in self._sums:
            self._sums[key] += value
        else:
            self._sums[key] = value

    def add_gram(self, name: str, layer: int, activation: Tensor) -> None:
        """Add the Gram matrix of one forward's activations; ``name`` is a field of `LayerGram`."""
        key, width = (name, layer), activation.shape[-1]
        if key not in self._grams:
            self._grams[key] = torch.zeros(width, width, dtype=torch.float64, device=activation.device)
        add_gram(self._grams[key], activation)

    def statistics(self, num_tokens: int) -> ActivationStatistics:
        """Return what was summed so far, on the CPU.

        Args:
            num_tokens: tokens in the counted forwards of this rank.
        """
        collected = replace(ActivationStatistics.zeros(self._geometry, self._statistics), num_tokens=num_tokens)
        for (name, layer), value in self._sums.items():
            whole = collected.sums[name][layer]
            whole[tuple(map(slice, value.shape))] = value.cpu()
        return collected

    def forget_statistics(self) -> None:
        """Free what was summed for statistics; Gram matrices stay."""
        self._sums.clear()

    def take_gram(self, layer: int) -> LayerGram:
        """Return the Gram matrices of one layer and forget them here; zeros where nothing was summed."""
        own = self._geometry.of_layer(layer)
        sizes = {"attention_output": own.num_attention_heads * own.head_dim, "intermediate": own.intermediate_size}
        sums = {kind: self._grams.pop((kind, layer), None) for kind in sizes}
        return LayerGram(
            **{
                kind: torch.zeros(size, size, dtype=torch.float64)
                if (found := sums[kind]) is None
                else complete_gram(found)
                for kind, size in sizes.items()
            }
        )


@contextmanager
def collect_statistics(
    model: nn.Module,
    geometry: Geometry,
    statistics: Collection[Statistic] = SQUARES,
    *,
    are_whole: bool = False,
) -> Iterator[Collector]:
    """Sum statistics over the forwards of a ``LlamaForCausalLM`` until the block ends.

    Put the model in eval mode: with activation checkpointing a training step runs every layer's
    forward, and so its hooks, twice.

    Args:
        model: the model itself, not the engine around it.
        geometry: its dimensions.
        statistics: what is summed; those that need gradients in the backward.
        are_whole: every sequence is one document. Sums cost less then, and to look would make the host wait for the
            device.
    """
    collector = Collector(geometry, statistics)
    handles: list[RemovableHandle] = []
    try:
        for layer, block in enumerate(decoder_layers(model)):
            for statistic in statistics:
                handles += _attach(collector, layer, block, statistic, geometry.of_layer(layer), are_whole)
        if any(each.needs_gradients for each in statistics):
            handles.append(_make_differentiable(model))
        yield collector
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def collect_grams(
    model: nn.Module, geometry: Geometry, layers: range, collector: Collector | None = None
) -> Iterator[Collector]:
    """Sum the Gram matrices of some layers of a ``LlamaForCausalLM`` until the block ends.

    collector: that sums statistics in the same forwards; None: one of their own.
    """
    collector = collector or Collector(geometry)
    handles: list[RemovableHandle] = []
    try:
        blocks = decoder_layers(model)
        for layer in layers:
            for name in ("attention_output", "intermediate"):
                handles.append(_watch(blocks[layer], name, _adds_gram(collector, name, layer)))
        yield collector
    finally:
        for handle in handles:
            handle.remove()


def _adds_gram(collector: Collector, name: str, layer: int) -> Callable[[Tensor], None]:
    def saw(activation: Tensor) -> None:
        if collector.enabled:
            collector.add_gram(name, layer, activation)

    return saw


def _attach(
    collector: Collector, layer: int, block: Any, statistic: Statistic, geometry: Geometry, are_whole: bool
) -> list[RemovableHandle]:
    """Attach the hooks that sum one statistic in one decoder layer, whose dimensions are given."""
    if statistic.needs_gradients:
        (name,) = statistic.observes
        return [_watch(block, name, _adds_in_backward(collector, layer, statistic, geometry))]
    seen: dict[str, Tensor | None] = {}

    def saw(name: str) -> Callable[[Tensor], None]:
        def remember(activation: Tensor) -> None:
            seen[name] = None if name == "position" and are_whole else _flat(activation.detach())
            if name != statistic.last_observed():
                return
            observed = [seen.pop(each) for each in statistic.observes]
            if collector.enabled:
                collector.add(statistic.name, layer, statistic.of_batch(*observed, geometry))

        return remember

    return [_watch(block, name, saw(name)) for name in statistic.observes]


def _adds_in_backward(
    collector: Collector, layer: int, statistic: Statistic, geometry: Geometry
) -> Callable[[Tensor], None]:
    def saw(activation: Tensor) -> None:
        # Detached: a hook that holds its own activation holds the whole graph, for good, where no collector looks.
        seen = _flat(activation.detach())

        def on_gradient(gradient: Tensor) -> None:
            collector.add(statistic.name, layer, statistic.of_batch(seen, _flat(gradient), geometry))

        if collector.enabled:
            activation.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    return saw


def _watch(block: Any, name: str, saw: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `saw` with one of `ACTIVATIONS` of a decoder layer in every forward.

    The output of a norm has its heads in a dimension of their own.
    """
    attention, mlp = block.self_attn, block.mlp
    if name in ("cosine", "sine"):
        return attention.register_forward_pre_hook(
            lambda _module, _inputs, keywords: saw(keywords["position_embeddings"][name == "sine"]), with_kwargs=True
        )
    if name == "position":
        return attention.register_forward_pre_hook(
            lambda _module, _inputs, keywords: saw(keywords["position_ids"].unsqueeze(-1)), with_kwargs=True
        )
    if name in ("attention_output", "intermediate"):
        reads = attention.o_proj if name == "attention_output" else mlp.down_proj
        return reads.register_forward_pre_hook(lambda _module, inputs: saw(inputs[0]))
    has_norms = hasattr(attention, "q_norm")
    makes = {
        "query_before_norm": attention.q_proj,
        "query": attention.q_norm if has_norms else attention.q_proj,
        "key_before_norm": attention.k_proj,
        "key": attention.k_norm if has_norms else attention.k_proj,
        "value": attention.v_proj,
    }[name]
    return makes.register_forward_hook(lambda _module, _inputs, output: saw(output))


def _flat(activation: Tensor) -> Tensor:
    """Put heads side by side: (batch, length, heads, head_dim) -> (batch, length, heads * head_dim)."""
    return activation.flatten(2)


def decoder_layers(model: Any) -> Any:
    """Return the list of decoder layers of a model of any family."""
    return model.model.layers


def _make_differentiable(model: Any) -> RemovableHandle:
    """Mark the embedded tokens as differentiable: with frozen weights alone there is no graph for a backward."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.requires_grad_() if output.is_leaf else output

    return model.model.embed_tokens.register_forward_hook(hook)
