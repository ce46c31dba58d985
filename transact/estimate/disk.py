"""Bytes on the disk: at the end, and at the fullest moment."""

from __future__ import annotations

from pathlib import Path

from transact.config import RunConfig
from transact.engine.memory import BYTES_BY_DTYPE, FLOAT32_BYTES, gram_disk_bytes
from transact.export.shapes import float16_rows
from transact.geometry import Geometry
from transact.models.folder import dtype_of
from transact.rounds import Round, text_sequences

CHECKPOINTS = 2 + 1  # those that are kept, and the one that is being written
TRAINED_COPIES = 4  # weights, both moments, and the best weights seen, in float32
BITS_PER_WEIGHT = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
BITS_OF_EMBEDDINGS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 8.5}  # and of the output layer


def disk_bytes(config: RunConfig, parent: Geometry, rounds: list[Round]) -> dict[str, int]:
    """By what it is; "end": all that stays; "peak": with what is there for a while. Text is counted once, the parent's
    own folder is not."""
    stored = BYTES_BY_DTYPE[config.model.dtype]
    parts = {
        "sliced_and_recovered": sum((2 if each.tokens else 1) * each.geometry.parameters() * stored for each in rounds),
        "statistics": sum(_statistics_bytes(each) for each in _calibrated(parent, rounds)),
        "export": rounds[-1].geometry.parameters() * BYTES_BY_DTYPE[_export_dtype(config)],
        "gguf": 0,
        "token_store": _token_bytes(config, parent, rounds),
    }
    if config.export.gguf != "none":
        parts["gguf"] = gguf_bytes(rounds[-1].geometry, config.export.gguf)
    end = sum(parts.values())
    grams = [0]
    if config.prune.method.needs_gram():
        grams = [gram_disk_bytes(each) for each in _calibrated(parent, rounds)]
    trained = [each.geometry for each in rounds if each.tokens]
    checkpoints = [0, *(CHECKPOINTS * TRAINED_COPIES * FLOAT32_BYTES * each.parameters() for each in trained)]
    return {
        **parts,
        "end": end,
        "gram": max(grams),
        "training_checkpoints": max(checkpoints),
        "peak": end + max(*grams, *checkpoints),
    }


def gguf_bytes(geometry: Geometry, kind: str) -> int:
    """The tokenizer and the header come on top."""
    tables = geometry.vocab_size * geometry.hidden_size * (1 if geometry.tied_embeddings else 2)
    in_float16 = geometry.num_layers * geometry.hidden_size * sum(float16_rows(geometry).values())
    quantised = geometry.parameters() - tables - in_float16
    bits = quantised * BITS_PER_WEIGHT[kind] + in_float16 * 16 + tables * BITS_OF_EMBEDDINGS[kind]
    return round(bits / 8)


def _calibrated(parent: Geometry, rounds: list[Round]) -> list[Geometry]:
    return [parent, *(each.geometry for each in rounds[:-1])]


def _statistics_bytes(geometry: Geometry) -> int:
    """Sums of squares in float64: pairs of q and k, attention output and MLP of every layer."""
    heads = geometry.num_attention_heads + geometry.num_key_value_heads
    width = heads * geometry.head_dim // 2 + geometry.num_attention_heads * geometry.head_dim
    return geometry.num_layers * (width + geometry.intermediate_size) * 8


def _token_bytes(config: RunConfig, parent: Geometry, rounds: list[Round]) -> int:
    """Training text once over, with what is reserved, and the held-out text; 2 bytes a token, 4 above 65,536 words."""
    width = 2 if parent.vocab_size <= 1 << 16 else 4
    length = config.data.sequence_length
    trained = sum(each.tokens for each in rounds) // length
    sequences = text_sequences(config, trained) + config.data.evaluation_sequences
    return sequences * length * width


def _export_dtype(config: RunConfig) -> str:
    """ "parent" is looked up where the parent is at hand, and else taken for bfloat16."""
    if config.model.export_dtype != "parent":
        return config.model.export_dtype
    if not config.model.path or not Path(config.model.path).is_dir():
        return "bfloat16"
    return dtype_of(Path(config.model.path))
