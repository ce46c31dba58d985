"""Collect activation statistics of a LLaMA-like decoder with forward hooks.

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

    from transact.pruning.refit import LayerGram
    from transact.pruning.statistics import ActivationStatistics

TAYLOR = frozenset({"taylor_pairs", "taylor_values", "taylor_channels"})
NORM_SHARES = frozenset({"query_share", "key_share"})


class Collector:
    """Running sums of one model on one rank.

    Attributes:
        enabled: set to False for a forward that must not count, such as a batch that only keeps
            a rank in step with the others.
    """

    def __init__(self, geometry: Geometry, extra: frozenset[str] = frozenset()) -> None:
        self.enabled = True
        self.extra = extra
        self._geometry = geometry
        # On the activation's own device: moving each sum would wait for the device every time.
        self._sums: dict[tuple[str, int], Tensor] = {}

    def add(self, kind: str, layer: int, value: Tensor) -> None:
        """Add the float64 sums of one forward; ``kind`` is a field of `ActivationStatistics` or `LayerGram`."""
        key = (kind, layer)
        if key in self._sums:
            self._sums[key] += value
        else:
            self._sums[key] = value

    def statistics(self, num_tokens: int) -> ActivationStatistics:
        """What was summed so far, on the CPU.

        Args:
            num_tokens: tokens in the counted forwards of this rank.
        """
        from dataclasses import replace

        from transact.pruning.statistics import ActivationStatistics

        collected = replace(ActivationStatistics.zeros(self._geometry, self.extra), num_tokens=num_tokens)
        for (kind, layer), value in self._sums.items():
            getattr(collected, kind)[layer] = value.cpu()
        return collected

    def take_gram(self, layer: int) -> LayerGram:
        """The Gram matrices of one layer, where they were summed; they are forgotten here. No sums: zeros."""
        import torch

        from transact.pruning.refit import LayerGram

        width = self._geometry.num_attention_heads * self._geometry.head_dim
        sizes = {"attention_output": width, "intermediate": self._geometry.intermediate_size}
        sums = {kind: self._sums.pop((kind, layer), None) for kind in sizes}
        return LayerGram(
            **{
                kind: torch.zeros(size, size, dtype=torch.float64) if (found := sums[kind]) is None else found
                for kind, size in sizes.items()
            }
        )


@contextmanager
def collect_statistics(
    model: nn.Module, geometry: Geometry, extra: frozenset[str] = frozenset()
) -> Iterator[Collector]:
    """Watch the forwards of a ``LlamaForCausalLM`` until the block ends.

    Put the model in eval mode: with activation checkpointing a training step runs every layer's
    forward, and so its hooks, twice.

    Args:
        model: the model itself, not the engine around it.
        geometry: its dimensions.
        extra: attributes of `ActivationStatistics` on request. Those of `TAYLOR` are summed in the backward.
    """
    collector = Collector(geometry, extra)
    handles: list[RemovableHandle] = []
    try:
        for layer, block in enumerate(_decoder_layers(model)):
            handles += _attach(collector, geometry, layer, block)
            if extra & TAYLOR:
                handles += _attach_gradients(collector, geometry, layer, block)
        if extra & TAYLOR:
            handles.append(_make_differentiable(model))
        yield collector
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def collect_grams(model: nn.Module, geometry: Geometry, layers: range) -> Iterator[Collector]:
    """Sum the Gram matrices of some layers of a ``LlamaForCausalLM`` until the block ends."""
    collector = Collector(geometry)
    handles: list[RemovableHandle] = []
    try:
        blocks = _decoder_layers(model)
        for layer in layers:
            handles += attach_grams(collector, layer, blocks[layer])
        yield collector
    finally:
        for handle in handles:
            handle.remove()


def attach_grams(collector: Collector, layer: int, block: Any) -> list[RemovableHandle]:
    """Hook the inputs of one decoder layer's output projections."""
    from transact.pruning.refit import gram

    return [
        block.self_attn.o_proj.register_forward_pre_hook(_before(collector, "attention_output", layer, gram)),
        block.mlp.down_proj.register_forward_pre_hook(_before(collector, "intermediate", layer, gram)),
    ]


def _last_before_rotation(attention: Any) -> tuple[Any, Any]:
    """The modules whose outputs are rotated: of queries and of keys, (batch, length, heads * head_dim) when flat."""
    if hasattr(attention, "q_norm"):
        return attention.q_norm, attention.k_norm
    return attention.q_proj, attention.k_proj


def _flat(output: Tensor) -> Tensor:
    """Heads side by side: norms see them apart."""
    return output.flatten(2)


def _decoder_layers(model: Any) -> Any:
    return model.model.layers


def _after(collector: Collector, kind: str, layer: int, sums_of: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if collector.enabled:
            collector.add(kind, layer, sums_of(output))

    return hook


def _before(collector: Collector, kind: str, layer: int, sums_of: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if collector.enabled:
            collector.add(kind, layer, sums_of(inputs[0]))

    return hook


def _attach(collector: Collector, geometry: Geometry, layer: int, block: Any) -> list[RemovableHandle]:
    """Hook one decoder layer."""
    from transact.pruning.statistics import channel_energy, rotary_pair_energy, rotary_pair_shares

    def pairs_of(num_heads: int) -> Callable[[Tensor], Tensor]:
        return lambda activation: rotary_pair_energy(_flat(activation), num_heads, geometry.head_dim)

    def dims_per_head(activation: Tensor) -> Tensor:
        return channel_energy(activation).view(-1, geometry.head_dim)

    attention, mlp = block.self_attn, block.mlp
    query, key = pairs_of(geometry.num_attention_heads), pairs_of(geometry.num_key_value_heads)
    last_query, last_key = _last_before_rotation(attention)
    handles = [
        last_query.register_forward_hook(_after(collector, "query", layer, query)),
        last_key.register_forward_hook(_after(collector, "key", layer, key)),
        attention.o_proj.register_forward_pre_hook(_before(collector, "attention_output", layer, dims_per_head)),
        mlp.down_proj.register_forward_pre_hook(_before(collector, "intermediate", layer, channel_energy)),
    ]
    if collector.extra & NORM_SHARES:
        for kind, norm in (("query_share", attention.q_norm), ("key_share", attention.k_norm)):
            handles.append(norm.register_forward_pre_hook(_before(collector, kind, layer, rotary_pair_shares)))
    if collector.extra & {"token_product", "logit_variance"}:
        handles += _attach_logits(collector, geometry, layer, attention)
    return handles


def _attach_logits(collector: Collector, geometry: Geometry, layer: int, attention: Any) -> list[RemovableHandle]:
    """Scores that need a token's query, its key and their rotation together. Keys are made after queries."""
    from transact.pruning.pair_scores import logit_variances, pair_products

    seen: dict[str, Any] = {}

    def embedding(_module: nn.Module, _inputs: object, keywords: dict[str, Any]) -> None:
        seen["embedding"] = keywords["position_embeddings"]

    def query(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen["query"] = _flat(output)

    def key(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        cosine, sine = seen.pop("embedding")
        projected = seen.pop("query")
        if not collector.enabled:
            return
        if "token_product" in collector.extra:
            collector.add("token_product", layer, pair_products(projected, _flat(output), geometry))
        if "logit_variance" in collector.extra:
            collector.add("logit_variance", layer, logit_variances(projected, _flat(output), cosine, sine, geometry))

    last_query, last_key = _last_before_rotation(attention)
    return [
        attention.register_forward_pre_hook(embedding, with_kwargs=True),
        last_query.register_forward_hook(query),
        last_key.register_forward_hook(key),
    ]


def _attach_gradients(collector: Collector, geometry: Geometry, layer: int, block: Any) -> list[RemovableHandle]:
    """Gates on the units of one layer: their gradients are summed when the loss is differentiated."""
    from transact.pruning import pair_scores as taylor

    def watch(kind: str, activation: Tensor, score_of: Callable[[Tensor], Tensor]) -> None:
        def on_gradient(gradient: Tensor) -> None:
            # The loss is a mean over the batch: undo that, so that every sequence counts the same.
            gates = taylor.gate_gradients(_flat(activation), _flat(gradient)) * len(activation)
            collector.add(kind, layer, score_of(gates))

        if collector.enabled:
            activation.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def query(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        watch("taylor_pairs", output, lambda gates: taylor.taylor_pairs(gates, geometry))

    def values(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        watch("taylor_values", inputs[0], lambda gates: taylor.taylor_values(gates, geometry))

    def channels(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        watch("taylor_channels", inputs[0], taylor.taylor_channels)

    return [
        _last_before_rotation(block.self_attn)[0].register_forward_hook(query),
        block.self_attn.o_proj.register_forward_pre_hook(values),
        block.mlp.down_proj.register_forward_pre_hook(channels),
    ]


def _make_differentiable(model: Any) -> RemovableHandle:
    """Frozen weights make no graph; the embedded tokens, marked as differentiable, do."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.requires_grad_() if output.is_leaf else output

    return model.model.embed_tokens.register_forward_hook(hook)
