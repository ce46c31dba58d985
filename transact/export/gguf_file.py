"""A GGUF file for llama.cpp from an exported folder.

llama.cpp rotates neighbouring dims (2i, 2i + 1) where transformers rotates i and i + head_dim/2: rows of q and k are
put in that order. Frequencies that rope_theta alone does not give travel as `rope_freqs.weight`, which divides them.
Weights of two dims are stored in the asked type, or in float16 where their rows do not divide into its blocks; norms,
biases and factors in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transact.export.gguf_tokenizer import add_tokenizer
from transact.files import read_json
from transact.models.families import family_of
from transact.models.llama import read_geometry
from transact.models.rotary import context_limit, frequency_factors, rope_settings
from transact.models.tensor_files import CheckpointReader
from transact.prune.targets import Q4_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_FLOAT16 = 65504.0
# What ggml calls the types: of the weights, and of the embedding and the output layer, which suffer most.
TENSOR_TYPES = {"f16": ("F16", "F16"), "q8_0": ("Q8_0", "Q8_0"), "q4_0": ("Q4_0", "Q8_0")}
FILE_TYPES = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
FACTORS = "rope_freqs.weight"


def write_gguf(folder: Path, target: Path, kind: str, name: str) -> list[str]:
    """Write the model in `folder` to the file `target`; one tensor is in memory at a time.

    Args:
        folder: an exported folder, checked before.
        target: the file.
        kind: "f16", "q8_0" or "q4_0".
        name: of the model, for its metadata.

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
    with CheckpointReader(folder) as reader:
        layout = _layout(reader, config, kind)
        for source, (shape, kind_of_tensor) in layout.items():
            _add_tensor_info(writer, _gguf_name(names, source), shape, kind_of_tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source, (_, kind_of_tensor) in layout.items():
            writer.write_tensor_data(_data(reader, config, source, kind_of_tensor))
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
    writer.add_feed_forward_length(geometry.intermediate_size)
    writer.add_head_count(geometry.num_attention_heads)
    writer.add_head_count_kv(geometry.num_key_value_heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(geometry.head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope_settings(config)["rope_theta"])


def _layout(reader: CheckpointReader, config: Mapping[str, Any], kind: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and ggml type of every tensor, in the order of the file."""
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
    return "F16" if shape[-1] % Q4_BLOCK else TENSOR_TYPES[kind][name in EMBEDDINGS]


def _gguf_name(names: Any, source: str) -> str:
    if source == FACTORS:
        return source
    name = names.get_name(source, try_suffixes=(".weight", ".bias"))
    assert name is not None, source
    return str(name)


def _add_tensor_info(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Announce a tensor; types other than plain floats are announced as their bytes."""
    import gguf
    import numpy

    plain = {"F32": numpy.float32, "F16": numpy.float16}.get(kind)
    if plain is not None:
        dtype = numpy.dtype(plain)
        writer.add_tensor_info(name, shape, dtype, int(numpy.prod(shape)) * dtype.itemsize)
        return
    quantised = gguf.GGMLQuantizationType[kind]
    stored = gguf.quant_shape_to_byte_shape(shape, quantised)
    writer.add_tensor_info(name, stored, numpy.dtype(numpy.uint8), int(numpy.prod(stored)), quantised)


def _data(reader: CheckpointReader, config: Mapping[str, Any], name: str, kind: str) -> Any:
    """A tensor in its ggml type, as numpy data."""
    import gguf

    tensor = frequency_factors(config) if name == FACTORS else reader.tensor(name)
    assert tensor is not None
    data = _rotation_order(name, tensor.float(), config)
    if kind == "F16" and float(data.abs().max()) > LARGEST_FLOAT16:
        raise OverflowError(f"{name} holds {float(data.abs().max()):.3g}: too large for float16")
    return gguf.quantize(data.contiguous().numpy(), gguf.GGMLQuantizationType[kind])


def _rotation_order(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Rows of q and k, dims i and i + head_dim/2 side by side, where the architecture rotates neighbours."""
    if family_of(config).gguf_architecture != "llama" or not any(each in name for each in ROTATED):
        return tensor
    half = read_geometry(config).head_dim // 2
    return tensor.reshape(-1, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
