"""Sequential calibration: each layer is fitted on the output of the layers before it, already cut.

Each output projection is first refitted on the dense model's activations, and then corrected so that the cut model's
residual stream behind it comes nearer to the dense model's: it makes up for what the layers before it have lost, as far
as half of the text says that this helps on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.initialization import no_init_weights

from transact.data.order import micro_batches
from transact.engine.model_folder import Tensors, layer_groups, stored_config, stored_names, write_model_folder
from transact.files import read_json
from transact.models.families import OWN_FREQUENCIES, PER_LAYER
from transact.models.llama import is_stock, layer_of, layer_weights, replace_projections, sliced_config
from transact.models.packing import document_mask
from transact.models.stock import stock_class
from transact.models.tensor_files import ModelReader
from transact.pruning.refit import LayerGram, Ridge, add_gram, add_product, complete_gram, corrected
from transact.pruning.selection import Selection
from transact.pruning.slicing import cut_layer
from transact.stages.calibrate import calibration_positions, read_gram
from transact.stages.job import Job
from transact.stages.texts import Texts

EMBEDDING = "model.embed_tokens.weight"
SMALL_STREAM = 1e-5  # mean square, as norms add to it: a token whose residual stream is smaller counts less


def slice_sequentially(
    job: Job,
    texts: Texts,
    source: Path,
    selection: Selection,
    output: Path,
    grams: Path,
    done: Callable[[], object],
) -> dict[str, Any]:
    """Write the sliced model's folder and return the shards' sizes and digests (collective).

    All ranks work on the same layer. grams: folder of the dense model's Gram matrices. done: as in `slice_in_parallel`.
    """
    config = read_json(source / "config.json")
    smaller = sliced_config(config, selection)
    with ModelReader(source) as reader:
        embedded, num_turns = _embedded(job, texts, reader)
        ridge, group = Ridge.of(job.config.prune.method), job.group
        streams = Streams(
            selection,
            embedded,
            device=group.device,
            ridge=ridge,
            num_turns=num_turns,
            turn=group.turn,
            total=group.sum,
        )

        def cut(names: list[str]) -> Tensors:
            tensors = {name: reader.tensor(name).float() for name in names}
            layer = layer_of(names[0])
            if layer is None:
                return tensors
            return streams.cut_layer(layer, tensors, partial(read_gram, grams, layer, group.device), config, smaller)

        return write_model_folder(
            output,
            job.group,
            [partial(cut, names) for names in layer_groups(stored_names(reader, config))],
            every_rank_reads=True,
            config=stored_config(smaller, job.config.model.dtype),
            companions=source,
            done=done,
        )


class Embedded(NamedTuple):
    """A micro-batch of what the first layer reads, on the CPU.

    Attributes:
        first: number of its first sequence in the text, whose even and odd sequences are its halves.
        hidden: (sequences, length, hidden_size) float32.
        position_ids: (sequences, length), that begin anew at every document. None: each sequence is one.
    """

    first: int
    hidden: Tensor
    position_ids: Tensor | None = None


def _embedded(job: Job, texts: Texts, reader: ModelReader) -> tuple[list[Embedded], int]:
    """Return this rank's calibration micro-batches as `Streams` takes them, and the turns that all ranks take."""
    embedding = reader.tensor(EMBEDDING).float()
    positions, size = calibration_positions(job, texts), job.config.engine.micro_batch
    turns = micro_batches(len(positions), size, job.group.rank, job.group.world_size)
    found = []
    for start, stop in [turn for turn in turns if turn]:
        own = positions[start:stop]
        found.append(Embedded(start, embedding[texts.train.sequences(own)], texts.train.position_ids(own)))
    return found, len(turns)


class Streams:
    """This rank's share of the calibration text, as hidden states of the dense and of the cut model."""

    def __init__(
        self,
        selection: Selection,
        embedded: Sequence[Embedded],
        *,
        device: torch.device,
        ridge: Ridge,
        num_turns: int,
        turn: Callable[[], object] = lambda: None,
        total: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> None:
        """Start both streams from the embedded calibration text.

        Args:
            embedded: on the CPU, because they grow with the text; they visit the device one by one.
            ridge: of the refit.
            num_turns: equal on all ranks; a rank with fewer micro-batches takes part in the sums all the same.
            turn: called after each, on every rank equally often: the job may stop there.
            total: sums a tensor over the ranks, in place.
        """
        self.selection, self.device, self.ridge, self.total = selection, device, ridge, total
        self.num_turns, self.turn = num_turns, turn
        self.firsts = [each.first for each in embedded]
        self.dense = [each.hidden for each in embedded]
        self.cut = list(self.dense)
        self.position_ids = [each.position_ids for each in embedded]

    @torch.no_grad()
    def cut_layer(
        self,
        layer: int,
        tensors: Tensors,
        read: Callable[[], LayerGram],
        config: dict[str, Any],
        smaller: dict[str, Any],
    ) -> Tensors:
        """Cut and refit the next layer, return its tensors, and move both streams on to its output (collective).

        Args:
            read: returns the dense layer's Gram matrices, for the refit that is then corrected; they are as large as
                all else here, so they are freed before that.
            config, smaller: config.json of the dense and of the cut model.
        """
        device, selection = self.device, self.selection
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        weights = layer_weights(tensors)
        assert weights is not None
        with no_init_weights():  # random numbers for a layer take longer than to load it
            dense, cut = SingleLayer(config, layer).to(device), SingleLayer(smaller, layer).to(device)
        dense.load_layer(tensors, layer)
        between = self._advance_dense(dense)
        fitted = cut_layer(weights, selection, layer, read(), self.ridge)
        cut.load_layer(replace_projections(tensors, fitted), layer)
        output = self._correct(cut.attention_inputs, between, fitted.output)
        del between  # as large as a stream
        down = self._correct(lambda hidden, _: cut.mlp_inputs(hidden), self.dense, fitted.down)
        dense.release()
        cut.release()
        return replace_projections(tensors, replace(fitted, output=output, down=down))

    def _in_step(self, *streams: list[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield micro-batches of streams side by side, on the device; what is None stays so.

        Ranks take equally many turns, and the job may stop after each.
        """
        for number in range(self.num_turns):
            if number < len(streams[0]):
                batches = [stream[number] for stream in streams]
                yield tuple(None if each is None else each.to(self.device) for each in batches)
            self.turn()

    def _advance_dense(self, dense: SingleLayer) -> list[Tensor]:
        """Move the dense stream on to the layer's output, and return it as it was between attention and MLP."""
        output, down = dense.block.self_attn.o_proj, dense.block.mlp.down_proj
        between = []
        for number, (hidden, position_ids) in enumerate(self._in_step(self.dense, self.position_ids)):
            hidden = hidden + output(dense.attention_inputs(hidden, position_ids))
            between.append(hidden.cpu())
            self.dense[number] = (hidden + down(dense.mlp_inputs(hidden))).cpu()
        return between

    def _correct(
        self, inputs_of: Callable[[Tensor, Tensor | None], Tensor], wanted: list[Tensor], weight: Tensor
    ) -> Tensor:
        """Return the projection that brings the cut stream nearer to `wanted`, and add its output (collective).

        Args:
            inputs_of: from the cut stream and its `position_ids` to the inputs of the projection.
            wanted: the dense residual stream behind the projection.
            weight: of the cut projection, refitted on the dense model's activations.
        """
        outputs, kept = weight.shape
        sums = [(self._zeros(outputs, kept), self._zeros(kept, kept)) for _ in range(2)]
        inputs = []
        turns = self._in_step(wanted, self.cut, self.position_ids)
        for first, (target, hidden, position_ids) in zip(self.firsts, turns, strict=True):
            found = inputs_of(hidden, position_ids)
            inputs.append(found.cpu())
            scale = token_scale(target, hidden + functional.linear(found, weight))
            error, weighted = (target - hidden) * scale, found * scale
            for half, (cross, own) in enumerate(sums):
                part = slice((half - first) % 2, None, 2)
                add_product(cross, error[part], weighted[part])
                add_gram(own, weighted[part])
        even, odd = ((self.total(cross), complete_gram(self.total(own))) for cross, own in sums)
        fitted = corrected(weight, (even, odd), self.ridge)
        for number, (hidden, found) in enumerate(self._in_step(self.cut, inputs)):
            self.cut[number] = (hidden + functional.linear(found, fitted)).cpu()
        return fitted

    def _zeros(self, rows: int, columns: int) -> Tensor:
        return torch.zeros(rows, columns, dtype=torch.float64, device=self.device)


def token_scale(dense: Tensor, cut: Tensor) -> Tensor:
    """Return what makes errors of a token's residual stream relative to it: (..., hidden_size) twice -> (..., 1).

    Whatever reads a stream normalises it first, so the larger of both streams counts. Attention sinks are a thousand
    times as large as other tokens: without this the least squares would be theirs alone. And a single token that only
    the cut model takes for a sink would own them too, and take the sinks out, were it measured by its dense stream.
    """
    square = torch.maximum(dense.square().mean(dim=-1, keepdim=True), cut.square().mean(dim=-1, keepdim=True))
    return (square + SMALL_STREAM).rsqrt()


class SingleLayer(nn.Module):
    """A stock decoder layer, causal, with its rotary embedding; whole, or its parts before the output projections."""

    def __init__(self, config: Mapping[str, Any], layer: int) -> None:
        """Build the layer; `load_layer` loads a model's weights."""
        super().__init__()
        # The embedding is not used here, so it is made as small as possible.
        small = dict(config) | {"num_hidden_layers": 1, "vocab_size": 1}
        small |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        if config.get("layer_types"):
            small["layer_types"] = [config["layer_types"][layer]]
        if not is_stock(config):
            small[PER_LAYER] = {"0": config[PER_LAYER][str(layer)]}
        if OWN_FREQUENCIES in config:
            small[OWN_FREQUENCIES] = config[OWN_FREQUENCIES][layer : layer + 1]
        # sdpa is causal without a mask; eager attention would look ahead.
        model_class, model_config = stock_class(small, "sdpa")
        model = model_class(model_config)
        self.block: Any = model.model.layers[0]
        self.rotary: Any = model.model.rotary_emb
        self.norm: Any = model.model.norm  # the one behind the last layer, whose weight nothing here loads
        self.eval().requires_grad_(False)

    def load_layer(self, tensors: Mapping[str, Tensor], layer: int) -> None:
        """Take the weights of one layer, by their names in the whole model."""
        prefix = f"model.layers.{layer}."
        self.block.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})

    def release(self) -> None:
        """Free the layer's weights now: transformers' modules refer to each other in circles, collected much later."""
        self.block.to("meta")

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output: (batch, length, hidden_size) -> the same shape."""
        positions, embeddings = self._rotation(hidden)
        found: Tensor = self.block(hidden, attention_mask=None, position_ids=positions, position_embeddings=embeddings)
        return found

    def attention_inputs(self, hidden: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Return what o_proj reads: (batch, length, hidden_size) -> (batch, length, heads * head_dim).

        position_ids: (batch, length), that begin anew at every document. None: each sequence is one.
        """
        positions, embeddings = self._rotation(hidden, position_ids)
        attention = self.block.self_attn
        projection, attention.o_proj = attention.o_proj, nn.Identity()  # callers project, or fit it first
        try:
            inputs: Tensor = attention(
                hidden_states=self.block.input_layernorm(hidden),
                attention_mask=None if position_ids is None else document_mask(position_ids, hidden.dtype),
                position_ids=positions,
                position_embeddings=embeddings,
            )[0]
        finally:
            attention.o_proj = projection
        return inputs

    def _rotation(self, hidden: Tensor, positions: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the positions, those of one document by default, and the cosines and sines that attention is given."""
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        embeddings = self.rotary(hidden, positions)
        own = getattr(self.block, "rotation", None)  # of a layer that differs from others
        return positions, embeddings if own is None else own(positions, embeddings)

    def mlp_inputs(self, hidden: Tensor) -> Tensor:
        """Return what down_proj reads, from the stream behind attention: (..., hidden_size) -> (..., channels)."""
        mlp = self.block.mlp
        normed = self.block.post_attention_layernorm(hidden)
        inputs: Tensor = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        return inputs
