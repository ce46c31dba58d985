"""What a run keeps on the disk, and what it reads and writes on the way, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transact.config.pruning import RecoverConfig
from transact.config.run import RunConfig
from transact.data.training_text import sequences_by_text
from transact.dimensions import loses_ordered_heads
from transact.engine.activation_memory import BYTES_BY_DTYPE, statistics_bytes
from transact.engine.gram_memory import FLOAT32_BYTES, gram_disk_bytes
from transact.engine.memory import TRAINED_COPIES
from transact.engine.trained import Trained
from transact.geometry import Geometry
from transact.models.folder import dtype_of
from transact.pruning.criteria import Criteria
from transact.pruning.targets import K_QUANT_BLOCK, float16_rows, undivided_rows
from transact.rounds import Outline, Round, Stage, reserved_sequences, shape_evaluations, text_sequences

CHECKPOINTS = 2 + 1  # those that are kept, and the one that is being written
# Of a weight in a GGUF file, with the scales of its block; of K-quants, which mix types, on average, and of what takes
# their place where rows do not divide into their blocks.
BITS_PER_WEIGHT = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q4_0": 4.5, "q4_k_m": 4.8, "q5_k_m": 5.7, "q6_k": 6.6}
BITS_OF_FALLBACK = {"q4_k_m": 5.9, "q5_k_m": 6.4, "q6_k": 8.5}
BITS_OF_EMBEDDINGS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q4_0": 8.5}  # and of the output layer; K-quants: of q6_k
MODEL_STAGES = ("slice", "recover")  # that leave a model folder


def disk_bytes(config: RunConfig, outline: Outline) -> dict[str, int]:
    """Return the bytes on disk by what they hold, at the "end", and at the "peak" with what is there for a while.

    Text is counted once. The parent's own folder is not counted, nor is what no stage of the outline makes: files of
    stages that are taken over are links to those of another run.
    """
    stored, rounds = BYTES_BY_DTYPE[config.model.dtype], outline.rounds
    before = _calibrated(outline)
    trained = [each.geometry for each in rounds if Stage("recover", each.number) in outline.stages]
    models = [
        stored * each.geometry.parameters() * sum(Stage(kind, each.number) in outline.stages for kind in MODEL_STAGES)
        for each in rounds
    ]
    # Those of a round are removed once the next one has its own.
    kept, at_most = sum(models), sum(models)
    if config.keep_rounds == "last":
        kept, at_most = models[-1], max(map(sum, zip(models, [0, *models], strict=False)))
    parts = {
        "sliced_and_recovered": kept,
        "statistics": sum(statistics_bytes(each, Criteria.of(config.prune.method)) for each in before),
        "export": rounds[-1].geometry.parameters() * BYTES_BY_DTYPE[_export_dtype(config)],
        "gguf": 0,
        "executorch": 0,
        "token_store": _token_bytes(config, outline),
    }
    if config.export.gguf != "none":
        parts["gguf"] = gguf_bytes(rounds[-1].geometry, config.export.gguf)
    if config.export.executorch != "none":
        parts["executorch"] = executorch_bytes(rounds[-1].geometry)
    end = sum(parts.values())
    grams = [0]
    if config.prune.method.needs_gram():
        grams += [gram_disk_bytes(each) for each in before]
    checkpoints = [0, *(CHECKPOINTS * training_checkpoint_bytes(each, config.recover) for each in trained)]
    return {
        **parts,
        "end": end,
        "gram": max(grams),
        "training_checkpoints": max(checkpoints),
        "round_before": at_most - kept,
        "peak": end - kept + at_most + max(*grams, *checkpoints, _half_file_bytes(config, rounds[-1].geometry)),
    }


def _calibrated(outline: Outline) -> list[Geometry]:
    """Return the dimensions of the models that are calibrated."""
    return [outline.before(stage.round) for stage in outline.stages if stage.kind == "calibrate" and stage.round]


def training_checkpoint_bytes(geometry: Geometry, config: RecoverConfig) -> int:
    """Return the bytes of one training checkpoint: float32 masters, both moments of Adam, the best weights so far."""
    return TRAINED_COPIES * FLOAT32_BYTES * Trained.of(geometry, config).parameters


def gguf_bytes(geometry: Geometry, kind: str) -> int:
    """Return the bytes of the weights in a GGUF file of this type; the tokenizer and the header come on top."""
    tables = geometry.vocab_size * geometry.hidden_size * (1 if geometry.tied_embeddings else 2)
    layers = [geometry.of_layer(layer) for layer in range(geometry.num_layers)]
    in_float16 = geometry.hidden_size * sum(sum(float16_rows(each).values()) for each in layers) if kind != "f32" else 0
    by_fallback, of_tables = 0, BITS_OF_EMBEDDINGS.get(kind, BITS_PER_WEIGHT["q6_k"])
    if kind in BITS_OF_FALLBACK:
        rows = sum(sum(undivided_rows(each, K_QUANT_BLOCK).values()) for each in layers)
        by_fallback = geometry.hidden_size * rows - in_float16
        if geometry.hidden_size % K_QUANT_BLOCK:
            by_fallback, of_tables = geometry.parameters() - tables - in_float16, BITS_OF_FALLBACK["q6_k"]
    rest = geometry.parameters() - tables - in_float16 - by_fallback
    bits = rest * BITS_PER_WEIGHT[kind] + by_fallback * BITS_OF_FALLBACK.get(kind, 0) + in_float16 * 16
    return round((bits + tables * of_tables) / 8)


def executorch_bytes(geometry: Geometry) -> int:
    """Return the bytes of the weights in a file for ExecuTorch: float32, and a table that is shared is there twice."""
    table = geometry.vocab_size * geometry.hidden_size
    return FLOAT32_BYTES * (geometry.parameters() + (table if geometry.tied_embeddings else 0))


def _half_file_bytes(config: RunConfig, geometry: Geometry) -> int:
    """Return the bytes of the float16 file that K-quants are made of; 0 for other types."""
    return gguf_bytes(geometry, "f16") if config.export.gguf in BITS_OF_FALLBACK else 0


def _token_bytes(config: RunConfig, outline: Outline) -> int:
    """Return the bytes of the token store: 2 bytes a token, 4 where the vocabulary has more than 65,536.

    With data.packing=documents a byte more, and one more for each token of a text whose answers alone count.

    It holds the training text once over, with what is reserved, the held-out text, and those of eval.texts. Of a
    mixture each text may have to stand in for another.
    """
    sequences = wanted_sequences(config, outline.tokens)
    width = (2 if outline.parent.vocab_size <= 1 << 16 else 4) + (config.data.packing == "documents")
    texts = config.texts()
    widths = {setting: width + (texts[setting].loss == "answers") for setting in sequences}
    return config.data.sequence_length * sum(count * widths[setting] for setting, count in sequences.items())


def wanted_sequences(config: RunConfig, tokens: int) -> dict[str, int]:
    """Return how many sequences of each text are wanted at most, by its setting. tokens: of recovery."""
    found = sequences_by_text(config.data, text_sequences(config, tokens), reserved_sequences(config))
    found["data.evaluation"] = config.data.evaluation_sequences
    return found | {f"eval.texts.{name}": config.eval.text_sequences for name in config.eval.texts}


def _export_dtype(config: RunConfig) -> str:
    """Return the dtype of the export; "parent" counts as bfloat16 where the parent is no local folder."""
    if config.model.export_dtype != "parent":
        return config.model.export_dtype
    if not config.model.path or not Path(config.model.path).is_dir():
        return "bfloat16"
    return dtype_of(Path(config.model.path))


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The bytes that a stage moves between memory and the file system, of all ranks together.

    Attributes: read: by all of them. written: by all of them. by_one: that rank 0 alone writes.
    """

    read: float = 0.0
    written: float = 0.0
    by_one: float = 0.0


def stage_traffic(config: RunConfig, outline: Outline, ranks: int, saves: dict[int, float]) -> dict[Stage, Traffic]:
    """Return what every stage of the outline moves, as far as it is known beforehand.

    Comparing files with their digests, before a stage reads them, counts as reading them once more; text is not
    counted, nor what is small.

    Args:
        saves: training checkpoints that the recovery of a round writes, by the round's number.
    """
    parent, last = outline.parent, outline.rounds[-1].geometry
    copies = 1 if config.engine.zero_stage == 3 else ranks  # of a model that an engine opens; at stage 3 its parts
    stored = BYTES_BY_DTYPE[config.model.dtype]
    exported = last.parameters() * BYTES_BY_DTYPE[_export_dtype(config)]
    found = {
        Stage("evaluate", 0): Traffic(read=copies * stored * parent.parameters()),
        Stage("export"): Traffic(read=(1 + copies) * stored * last.parameters() + 2 * exported, by_one=exported),
    }
    if config.export.gguf != "none":
        size = gguf_bytes(last, config.export.gguf)
        half = _half_file_bytes(config, last)
        found[Stage(f"gguf_{config.export.gguf}")] = Traffic(read=2 * exported + half, by_one=half + size)
    if config.export.executorch != "none":
        size = executorch_bytes(last)
        found[Stage(f"executorch_{config.export.executorch_kind}")] = Traffic(read=3 * exported + size, by_one=size)
    for each in outline.rounds:
        of_round = _round_traffic(config, outline, each, copies, ranks, saves.get(each.number, 0.0))
        found |= {Stage(kind, each.number): traffic for kind, traffic in of_round.items()}
    return {stage: found[stage] for stage in outline.stages if stage in found}


def _round_traffic(
    config: RunConfig, outline: Outline, each: Round, copies: int, ranks: int, saves: float
) -> dict[str, Traffic]:
    stored, whole = BYTES_BY_DTYPE[config.model.dtype], outline.before(each.number)
    before, after = stored * whole.parameters(), stored * each.geometry.parameters()
    method = config.prune.method
    grams = gram_disk_bytes(whole) if method.needs_gram() else 0
    fitted = (before + grams) / whole.num_layers  # a layer and its matrices, read for each shape
    matrices = (2 if method.channels == "obs" else 1) * grams  # compared with their digests, and read
    weighed = before if method.channels == "obs" or Criteria.of(method).looks_at_weights else 0
    # The order in which key-value heads go, from Gram matrices and o_proj.
    width = whole.num_attention_heads * whole.head_dim
    ordered = grams + stored * whole.num_layers * whole.hidden_size * width
    # A search for shapes hands its own over to the first round.
    is_handed = config.prune.shapes == "layers" and each.number == 1
    is_ordered = not is_handed and loses_ordered_heads(config.prune, whole, [each.geometry])
    checked = before if each.number > 1 else 0  # the parent's digests are compared once, at the start
    # Stages that look at one model share an engine, which the first of them opens.
    lookers = (Stage("evaluate", each.number - 1), Stage("calibrate", each.number), Stage("gram", each.number))
    first = next((stage for stage in lookers if stage in outline.stages), None)
    opened = {stage: copies * before if stage == first else 0 for stage in lookers}
    teacher = 0 if config.recover.objective == "cross_entropy" else stored * outline.parent.parameters()
    readers = ranks if method.refit == "sequential" else 1  # of every layer, one after the other
    candidates = [stored * one.parameters() for one in outline.candidates] if each.number == 1 else []
    trained = Traffic(
        read=after + copies * (after + teacher),
        written=saves * training_checkpoint_bytes(each.geometry, config.recover) + after,
    )
    return {
        "calibrate": Traffic(read=checked + opened[Stage("calibrate", each.number)]),
        "gram": Traffic(read=checked + opened[Stage("gram", each.number)], written=grams),
        "split": Traffic(
            read=weighed
            + matrices
            + (ordered if loses_ordered_heads(config.prune, whole, outline.candidates) else 0)
            + len(candidates) * (before + grams)
            + copies * sum(candidates),
            written=sum(candidates),
        ),
        "shapes": Traffic(
            read=before
            + 2 * grams
            + copies * (before + teacher)
            + shape_evaluations(config.prune, outline.parent) * fitted * ranks,
            written=before,
        ),
        "select": Traffic(read=checked + weighed + matrices + (ordered if is_ordered else 0)),
        "slice": Traffic(read=checked + grams + readers * (before + grams), written=after),
        "recover": trained if each.tokens else Traffic(),
        "evaluate": Traffic(read=after * (2 if each.tokens else 1) + copies * after),
    }
