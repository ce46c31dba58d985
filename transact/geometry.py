"""The dimensions of a model and everything that can be counted from them alone.

Closed forms, no torch: parameters, KV-cache bytes and FLOPs of any cut are known before a
single weight is read. The tests compare them with a real ``LlamaForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """What one layer has of its own where layers differ; as many query heads share a key-value head in all of them."""

    num_key_value_heads: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Dimensions of a LLaMA-like decoder.

    ``head_dim`` (queries, keys and values alike) and ``intermediate_size`` are the transitional
    dimensions, the ones that are cut; a cut of whole heads changes the numbers of heads, instead of
    ``head_dim`` or beside it. The others never change. ``query_key_value_bias``: q, k and v have biases.
    ``query_key_norm``: queries and keys pass a norm over each head's dims. ``layers``: where layers
    differ, the widths of each; ``num_key_value_heads`` and ``intermediate_size`` are then the largest.

    Raises:
        ValueError: a dimension is not positive, ``head_dim`` is odd (rotary embeddings turn dims
            in pairs), the query heads cannot be shared out evenly among the key-value heads, or the
            widths of layers are not those of so many layers with these largest ones.
    """

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    query_key_value_bias: bool = False
    query_key_norm: bool = False
    layers: tuple[Widths, ...] = ()

    def __post_init__(self) -> None:
        for names, dimensions in ((_NUMBERS, (self,)), (_OF_LAYERS, self.layers)):
            for each in dimensions:
                for name in names:
                    if getattr(each, name) < 1:
                        raise ValueError(f"{name} must be positive, got {getattr(each, name)}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.layers and len(self.layers) != self.num_layers:
            raise ValueError(f"{self.num_layers} layers, but widths of {len(self.layers)}")
        for name in _OF_LAYERS if self.layers else ():
            largest = max(getattr(each, name) for each in self.layers)
            if getattr(self, name) != largest:
                raise ValueError(f"{name} must be that of the widest layer, {largest}, got {getattr(self, name)}")

    @property
    def queries_per_key_value_head(self) -> int:
        """Query heads that share one key-value head; 1 for plain multi-head attention."""
        return self.num_attention_heads // self.num_key_value_heads

    def with_layers(self, layers: Sequence[Widths]) -> Geometry:
        """Return these dimensions with widths for every layer; one number where all layers have the same."""
        largest = Widths(**{name: max(getattr(each, name) for each in layers) for name in _OF_LAYERS})
        return replace(
            self,
            num_attention_heads=largest.num_key_value_heads * self.queries_per_key_value_head,
            **asdict(largest),
            layers=() if all(each == largest for each in layers) else tuple(layers),
        )

    def widths(self) -> tuple[Widths, ...]:
        """Return the widths of every layer."""
        return self.layers or (Widths(**{name: getattr(self, name) for name in _OF_LAYERS}),) * self.num_layers

    def of_layer(self, layer: int) -> Geometry:
        """Return the dimensions of a model whose layers are all as this one."""
        return self.with_layers([self.layers[layer]] * self.num_layers) if self.layers else self

    def mean(self, name: str) -> float:
        """Return the mean of one of the widths over the layers."""
        return self._in_all_layers(name) / self.num_layers

    def _in_all_layers(self, name: str) -> int:
        """Return the sum of one of the widths over all layers."""
        if not self.layers:
            return self.num_layers * int(getattr(self, name))
        return sum(getattr(each, name) for each in self.layers)

    def parameters(self) -> int:
        """Return the number of all parameters; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return embeddings + norms + self._head_vectors() + self.transitional_parameters()

    def _head_vectors(self) -> int:
        """Return the number of parameters in the biases of q, k and v and in the norms of queries and keys."""
        biases = (self.queries_per_key_value_head + 2) * self._in_all_layers("num_key_value_heads")
        norms = 2 * self.num_layers if self.query_key_norm else 0
        return self.head_dim * (norms + (biases if self.query_key_value_bias else 0))

    def transitional_parameters(self) -> int:
        """Return the number of weights in q, k, v, o, gate, up and down: all that can be cut, but for a few vectors."""
        # q and o are as wide as the query heads, k and v as the key-value heads.
        heads = 2 * (self.queries_per_key_value_head + 1) * self._in_all_layers("num_key_value_heads")
        return self.hidden_size * (heads * self.head_dim + 3 * self._in_all_layers("intermediate_size"))

    def largest_layer(self) -> int:
        """Return the number of these weights in the layer that has the most."""
        each = {self.of_layer(layer) for layer in range(self.num_layers)} if self.layers else {self}
        return max(one.transitional_parameters() for one in each) // self.num_layers

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Return the bytes that one token occupies in the KV cache of all layers (default: 16-bit)."""
        elements = 2 * self._in_all_layers("num_key_value_heads") * self.head_dim
        return elements * bytes_per_element

    def adapter_parameters(self, rank: int, projections: Collection[str]) -> int:
        """Return the number of parameters of low-rank adapters in all layers.

        Args:
            projections: that have one, "q_proj" and so on; each leads from or to the hidden states.
        """
        of_values = self._in_all_layers("num_key_value_heads") * self.head_dim
        of_queries = of_values * self.queries_per_key_value_head
        widths = {"q_proj": of_queries, "o_proj": of_queries, "k_proj": of_values, "v_proj": of_values}
        channels = self._in_all_layers("intermediate_size")
        inner = sum(widths.get(each, channels) for each in projections)
        return rank * (inner + len(projections) * self.num_layers * self.hidden_size)

    def training_flops_per_token(
        self, context_length: int, teacher: Geometry | None = None, *, adapters: int | None = None
    ) -> int:
        """Return the FLOPs of forward and backward per token, and of the forward of a teacher where there is one.

        The backward computes the gradients of inputs and of weights: twice a forward. Frozen weights have none.

        Args:
            adapters: parameters of low-rank adapters that are trained in place of the weights; None: all weights are.
        """
        of_teacher = 0 if teacher is None else teacher.flops_per_token(context_length)
        flops = 3 * self.flops_per_token(context_length) + of_teacher
        return flops if adapters is None else flops + 3 * 2 * adapters - 2 * self._multiplied()

    def flops_per_token(self, context_length: int) -> int:
        """Return the forward FLOPs per token of a sequence of ``context_length`` tokens.

        A multiply-add is two FLOPs. Counts matrix products only, and attention over the whole
        square without the saving of a causal kernel: what ``torch.utils.flop_counter`` reports
        for eager attention. The output layer is applied to every token.
        """
        if context_length < 1:
            raise ValueError(f"context_length must be positive, got {context_length}")
        heads = self.queries_per_key_value_head * self._in_all_layers("num_key_value_heads")
        # One product for queries with keys, one for attention weights with values.
        attention = 2 * heads * self.head_dim * context_length
        return 2 * (self._multiplied() + attention)

    def _multiplied(self) -> int:
        """Return the number of weights that a token's hidden states are multiplied with."""
        return self.transitional_parameters() + self.hidden_size * self.vocab_size

    def prefill_flops(self, prompt_tokens: int) -> int:
        """Return the forward FLOPs of one prompt whose next token alone is wanted, counted as in `flops_per_token`."""
        unwanted = 2 * self.hidden_size * self.vocab_size * (prompt_tokens - 1)  # of the output layer
        return prompt_tokens * self.flops_per_token(prompt_tokens) - unwanted

    def decode_bytes(self, context_length: int, batch_size: int = 1, bytes_per_element: int = 2) -> int:
        """Return the bytes that must be read to make the next token of every sequence of a batch.

        All weights once, except the embedding (a row of it a sequence, unless it is the output layer
        as well), and the KV cache of ``context_length`` tokens a sequence.
        """
        embedding = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        weights = self.parameters() - embedding + (0 if self.tied_embeddings else batch_size * self.hidden_size)
        cache = batch_size * context_length * self.kv_bytes_per_token(bytes_per_element)
        return weights * bytes_per_element + cache

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; `layers` is in it where layers differ."""
        values = asdict(self)
        layers = list(values.pop("layers"))
        return values | ({"layers": layers} if layers else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """Make a geometry from the dictionary that `to_dict` returns.

        Raises:
            ValueError: keys are unknown or missing.
        """
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if not required <= values.keys() <= known:
            unknown, missing = sorted(values.keys() - known), sorted(required - values.keys())
            raise ValueError(f"geometry has unknown keys {unknown} and lacks keys {missing}")
        layers = tuple(Widths(**each) for each in values.get("layers", ()))
        return cls(**(dict(values) | {"layers": layers}))


def geometry_changes(before: Geometry, after: Geometry) -> str:
    """Return the dimensions that differ: "head_dim 32 -> 24, intermediate_size 640 -> 32 to 512 (277 on average)"."""
    changes = []
    for name in (each.name for each in fields(Geometry) if each.name != "layers"):
        had, has = (
            [getattr(each.of_layer(layer), name) for layer in range(each.num_layers)] for each in (before, after)
        )
        if had != has:
            changes.append(f"{name} {_of_all_layers(name, had)} -> {_of_all_layers(name, has)}")
    return ", ".join(changes)


def _of_all_layers(name: str, sizes: Sequence[int]) -> str:
    mean, digits = sum(sizes) / len(sizes), 0 if name == "intermediate_size" else 1
    return f"{min(sizes)} to {max(sizes)} ({mean:.{digits}f} on average)" if len(set(sizes)) > 1 else str(sizes[0])


_OF_LAYERS = tuple(each.name for each in fields(Widths))
_NUMBERS = tuple(each.name for each in fields(Geometry) if each.type == "int")
