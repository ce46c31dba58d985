"""Write the final model as one GGUF file for llama.cpp, and refuse beforehand what such a file cannot hold."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from transact.config.outputs import GGUF_TYPES, ExportConfig
from transact.config.run import RunConfig
from transact.files import read_json
from transact.models.families import OWN_FREQUENCIES, family_of
from transact.models.llama import read_geometry
from transact.models.rotary import context_limit, frequency_factors, rope_settings
from transact.models.tensor_files import ModelReader
from transact.pruning.targets import Q4_BLOCK
from transact.rounds import Outline

if TYPE_CHECKING:
    from torch import Tensor


GPT2_SPLIT = "gpt-2"
DIGITS = "digits"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The rules of a tokenizer.json, in order -> llama.cpp's name for them, and whether it then ignores merges for whole
# words of the vocabulary.
PRE_TOKENIZERS = {
    (GPT2_SPLIT,): ("gpt-2", False),
    (DIGITS, GPT2_SPLIT): ("smollm", False),
    (_WORDS % "{1,3}",): ("llama-bpe", True),
    (_WORDS % "",): ("qwen2", False),
}


def check_tokenizer(folder: Path) -> None:
    """Check that llama.cpp knows the tokenizer of a folder.

    Raises:
        ValueError: it does not.
    """
    if is_byte_level(folder):
        pre_tokenizer_name(read_json(folder / "tokenizer.json"))
    elif not (folder / "tokenizer.model").is_file():
        raise ValueError(
            "its tokenizer is neither a byte-level BPE (tokenizer.json) nor sentencepiece (tokenizer.model)"
        )


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the rules by which a tokenizer.json splits text before the merges.

    Raises:
        ValueError: it has none.
    """
    rules = tuple(rule for step in _steps(tokenizer) if (rule := _rule(step)) is not None)
    name, ignores_merges = PRE_TOKENIZERS.get(rules, ("", False))
    if not name or bool(tokenizer["model"].get("ignore_merges")) != ignores_merges:
        known = ", ".join(known for known, _ in PRE_TOKENIZERS.values())
        raise ValueError(f"its tokenizer splits text by rules that llama.cpp has under none of the names {known}")
    return name


def add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Add vocabulary, merges or scores, and special tokens; entries without a token are padded."""
    import gguf

    byte_level = is_byte_level(folder)
    tokens = _byte_level_tokens(folder) if byte_level else _sentencepiece_tokens(folder)
    tokens += [_padding(index) for index in range(len(tokens), vocab_size)]
    texts, scores, kinds = zip(*tokens[:vocab_size], strict=True)
    if byte_level:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(read_json(folder / "tokenizer.json")))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(list(scores))
        path = folder / "tokenizer_config.json"
        if path.is_file() and read_json(path).get("add_prefix_space") is False:  # llama.cpp adds one by itself
            writer.add_add_space_prefix(False)
    writer.add_token_list(list(texts))
    writer.add_token_types(list(kinds))
    special = gguf.SpecialVocab(folder, load_merges=byte_level, n_vocab=vocab_size)
    special.add_special_token["bos"] = _adds_first_token(folder, special.special_token_ids.get("bos"))
    special.add_to_gguf(writer, quiet=True)


def is_byte_level(folder: Path) -> bool:
    path = folder / "tokenizer.json"
    return path.is_file() and any(step["type"] == "ByteLevel" for step in _steps(read_json(path)))


def _steps(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = tokenizer.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    return list(found["pretokenizers"]) if found["type"] == "Sequence" else [found]


def _rule(step: Mapping[str, Any]) -> str | None:
    """Return one step in the words of `PRE_TOKENIZERS`; None for one that splits nothing."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses_split}:
            return GPT2_SPLIT if uses_split else None
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return str(step)  # not in PRE_TOKENIZERS


def _byte_level_tokens(folder: Path) -> list[tuple[bytes, float, Any]]:
    """Return (text, score, kind) of every entry of a tokenizer.json, without gaps."""
    import gguf

    tokenizer = read_json(folder / "tokenizer.json")
    found = {index: (text.encode(), 0.0, gguf.TokenType.NORMAL) for text, index in tokenizer["model"]["vocab"].items()}
    found |= {each["id"]: _added_token(each) for each in tokenizer.get("added_tokens", [])}
    return [found.get(index) or _padding(index) for index in range(max(found) + 1)]


def _added_token(added: Mapping[str, Any]) -> tuple[bytes, float, Any]:
    import gguf

    kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    return added["content"].encode(), 0.0, kind


def _padding(index: int) -> tuple[bytes, float, Any]:
    import gguf

    return f"[PAD{index}]".encode(), 0.0, gguf.TokenType.UNUSED


def _sentencepiece_tokens(folder: Path) -> list[tuple[bytes, float, Any]]:
    """Return (text, score, kind) of the pieces, and of what a tokenizer.json has added behind them, without gaps."""
    import gguf

    found, path = list(gguf.SentencePieceVocab(folder).all_tokens()), folder / "tokenizer.json"
    added = read_json(path).get("added_tokens", []) if path.is_file() else []
    behind = {each["id"]: each for each in added if each["id"] >= len(found)}
    for index in range(len(found), max(behind, default=0) + 1):
        found.append(_added_token(behind[index]) if index in behind else _padding(index))
    return found


def _adds_first_token(folder: Path, first: int | None) -> bool:
    """Return whether the tokenizer itself begins a text with this token."""
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("a").input_ids
    return first is not None and bool(encoded) and encoded[0] == first


def check_gguf(config: RunConfig, model_config: Mapping[str, Any], outline: Outline) -> None:
    """Check that package, family and dimensions allow the file.

    Raises:
        ValueError: one line with what to change.
    """
    kind = config.export.gguf
    if kind == "none":
        return
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"export.gguf={kind!r} needs the package gguf: pip install 'transact[gguf]'")
    parent = outline.parent
    if kind not in FLOATS and parent.hidden_size % Q4_BLOCK:
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: hidden_size is {parent.hidden_size}, and {kind} takes multiples of "
            f"{Q4_BLOCK}; it must be {' or '.join(FLOATS)}"
        )
    result = Path(config.output_dir) / "export" / "config.json"
    if result.is_file():  # the run is finished: the exported model counts, not what might have come of it
        check_gguf_result(kind, read_json(result))
    else:
        cuts_pairs = any(end.head_dim < parent.head_dim for end in outline.ends)
        check_gguf_rotation(config, model_config, cuts_pairs=cuts_pairs)


def check_gguf_result(kind: str, model_config: Mapping[str, Any]) -> None:
    """Check that llama.cpp rotates as an exported model does.

    Raises:
        ValueError: it does not.
    """
    if OWN_FREQUENCIES in model_config:
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: layers or heads of the exported model have rotary frequencies of "
            "their own, and llama.cpp has one set; a new run with prune.method.pair_scope=model gives such a model"
        )
    family = family_of(model_config)
    if family.gguf_architecture not in NEIGHBOURS and rope_settings(model_config)["rope_type"] != "default":
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: the exported model has rotary factors, and llama.cpp's "
            f"{family.model_type} takes none; a new run with prune.rotary_pairs=progression gives a model without"
        )


def check_gguf_rotation(config: RunConfig, model_config: Mapping[str, Any], *, cuts_pairs: bool) -> None:
    """Check that llama.cpp can rotate as the model will.

    Args:
        cuts_pairs: the model may lose rotary pairs.

    Raises:
        ValueError: it cannot.
    """
    kind, method = config.export.gguf, config.prune.method
    if method.pair_scope != "model":
        raise ValueError(
            f"export.gguf={kind!r} is not allowed with prune.method.pair_scope={method.pair_scope}: llama.cpp has one "
            "set of rotary frequencies; the scope must be model"
        )
    if family_of(model_config).gguf_architecture == "llama":
        return
    family = family_of(model_config).model_type
    if rope_settings(model_config)["rope_type"] != "default":
        raise ValueError(f"export.gguf={kind!r} is not allowed: llama.cpp's {family} takes no rotary factors")
    if cuts_pairs and config.prune.rotary_pairs != "progression":
        raise ValueError(
            f"export.gguf={kind!r} is not allowed with prune.rotary_pairs={config.prune.rotary_pairs}: llama.cpp's "
            f"{family} takes no rotary factors; it must be progression"
        )


def possible_gguf_types(model_config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the types that `export.gguf` can write of an exported config.json with the tokenizer of a folder.

    There are none where llama.cpp cannot rotate so, or does not know the tokenizer.
    """
    try:
        check_gguf_result("f16", model_config)
        check_tokenizer(folder)
    except ValueError:
        return []
    return [kind for kind in GGUF_TYPES[1:] if kind in FLOATS or model_config["hidden_size"] % Q4_BLOCK == 0]


def check_gguf_tokenizer(export: ExportConfig, folder: Path) -> None:
    """Check that llama.cpp knows the tokenizer, where a GGUF file is asked for.

    Raises:
        ValueError: it does not, or the package sentencepiece is missing.
    """
    if export.gguf == "none":
        return
    try:
        check_tokenizer(folder)
        if not is_byte_level(folder):
            import sentencepiece  # noqa: F401
    except ImportError:
        raise ValueError(
            f"export.gguf={export.gguf!r} needs the package sentencepiece: pip install sentencepiece"
        ) from None
    except ValueError as error:
        raise ValueError(f"export.gguf={export.gguf!r} is not allowed for {str(folder)!r}: {error}") from None


LARGEST_FLOAT16 = 65504.0
FLOATS = ("f32", "f16")  # types without blocks
# What ggml calls the types: of the weights, and of the embedding and the output layer, which suffer most.
TENSOR_TYPES = {"f32": ("F32", "F32"), "f16": ("F16", "F16"), "q8_0": ("Q8_0", "Q8_0"), "q4_0": ("Q4_0", "Q8_0")}
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
NEIGHBOURS = ("llama", "deci")  # architectures that rotate dims 2i and 2i + 1 together
FACTORS = "rope_freqs.weight"


def write_gguf(
    folder: Path, target: Path, kind: str, name: str, advance: Callable[[int], object] = lambda weights: None
) -> list[str]:
    """Write the model in `folder` to the file `target`; one tensor is in memory at a time.

    Args:
        folder: an exported folder, checked before.
        target: the file.
        kind: "f32", "f16", "q8_0" or "q4_0".
        name: of the model, for its metadata.
        advance: called with the number of weights of each tensor that is written.

    Returns:
        Weights that are float16 though another type was asked for: their rows do not divide into its blocks.

    Raises:
        ValueError: the tokenizer is one that llama.cpp does not know.
        OverflowError: a weight is too large for float16.
    """
    import gguf

    config = read_json(folder / "config.json")
    architecture = family_of(config).gguf_architecture
    writer = gguf.GGUFWriter(target, architecture)
    _add_dimensions(writer, config, kind, name)
    add_tokenizer(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    with ModelReader(folder) as reader:
        layout = _layout(reader, config, kind)
        for source, (shape, kind_of_tensor) in layout.items():
            _add_tensor_info(writer, _gguf_name(names, source), shape, kind_of_tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source, (shape, kind_of_tensor) in layout.items():
            writer.write_tensor_data(_data(reader, config, source, kind_of_tensor))
            advance(math.prod(shape))
    writer.close()
    return [source for source, (_, stored) in layout.items() if stored == "F16" and kind != "f16"]


def _add_dimensions(writer: Any, config: Mapping[str, Any], kind: str, name: str) -> None:
    import gguf

    geometry = read_geometry(config)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[kind]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(geometry.vocab_size)
    # llama.cpp's llama has no sliding window: beyond it the file would not compute what the model does.
    window = family_of(config).window(config)
    writer.add_context_length(min(context_limit(config), window or context_limit(config)))
    writer.add_embedding_length(geometry.hidden_size)
    writer.add_block_count(geometry.num_layers)
    group = geometry.queries_per_key_value_head
    for add, sizes in (
        (writer.add_feed_forward_length, [each.intermediate_size for each in geometry.widths()]),
        (writer.add_head_count, [group * each.num_key_value_heads for each in geometry.widths()]),
        (writer.add_head_count_kv, [each.num_key_value_heads for each in geometry.widths()]),
    ):
        add(sizes if geometry.layers else sizes[0])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(geometry.head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope_settings(config)["rope_theta"])


def _layout(reader: ModelReader, config: Mapping[str, Any], kind: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and ggml type of every tensor, in the order of the file."""
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    found = {
        name: (shape := reader.shape(name), _tensor_type(name, shape, kind))
        for name in sorted(reader.files)
        if name not in tied
    }
    factors = frequency_factors(config)
    return found if factors is None else found | {FACTORS: (tuple(factors.shape), "F32")}


def _tensor_type(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "F32"
    return "F16" if kind not in FLOATS and shape[-1] % Q4_BLOCK else TENSOR_TYPES[kind][name in EMBEDDINGS]


def _gguf_name(names: Any, source: str) -> str:
    if source == FACTORS:
        return source
    name = names.get_name(source, try_suffixes=(".weight", ".bias"))
    assert name is not None, source
    return str(name)


def _add_tensor_info(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Announce a tensor; types other than plain floats are announced as their bytes."""
    import gguf

    plain = {"F32": numpy.float32, "F16": numpy.float16}.get(kind)
    if plain is not None:
        dtype = numpy.dtype(plain)
        writer.add_tensor_info(name, shape, dtype, int(numpy.prod(shape)) * dtype.itemsize)
        return
    quantised = gguf.GGMLQuantizationType[kind]
    stored = gguf.quant_shape_to_byte_shape(shape, quantised)
    writer.add_tensor_info(name, stored, numpy.dtype(numpy.uint8), int(numpy.prod(stored)), quantised)


def _data(reader: ModelReader, config: Mapping[str, Any], name: str, kind: str) -> Any:
    """Return a tensor in its ggml type, as numpy data."""
    import gguf

    tensor = frequency_factors(config) if name == FACTORS else reader.tensor(name)
    assert tensor is not None
    data = _rotation_order(name, tensor.float(), config)
    if kind == "F16" and float(data.abs().max()) > LARGEST_FLOAT16:
        raise OverflowError(f"{name} holds {float(data.abs().max()):.3g}: too large for float16")
    return gguf.quantize(data.contiguous().numpy(), gguf.GGMLQuantizationType[kind])


def _rotation_order(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Put rows i and i + head_dim/2 of q and k side by side, where the architecture rotates neighbours."""
    if family_of(config).gguf_architecture not in NEIGHBOURS or not any(each in name for each in ROTATED):
        return tensor
    half = read_geometry(config).head_dim // 2
    return tensor.reshape(-1, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
