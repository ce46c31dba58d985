"""What the runtimes that serve a model support: multiples of its dimensions, and sizes that are slow or refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transact.geometry import Geometry
from transact.pruning.search_space import Multiples


def cut_rows(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """Return the size of each dimension that is cut, and the length of the weight rows that it decides."""
    width = geometry.num_attention_heads * geometry.head_dim
    channels = geometry.intermediate_size
    return {"head_dim": (geometry.head_dim, width), "intermediate_size": (channels, channels)}


def float16_rows(geometry: Geometry) -> dict[str, int]:
    """Return the projections that llama.cpp's quantised types leave in float16, and the length of their rows."""
    return undivided_rows(geometry, Q4_BLOCK)


def undivided_rows(geometry: Geometry, block: int) -> dict[str, int]:
    """Return the projections whose rows are no multiple of a block of weights, and the length of their rows.

    Where layers differ it is the length in the first layer that has such rows.
    """
    found: dict[str, int] = {}
    for layer in range(geometry.num_layers if geometry.layers else 1):
        own = geometry.of_layer(layer)
        rows = {"o_proj": own.num_attention_heads * own.head_dim, "down_proj": own.intermediate_size}
        found = {name: row for name, row in rows.items() if row % block} | found
    return found


def shape_warnings(geometry: Geometry) -> list[str]:
    """Return one line for each dimension that will cost speed or a format, with what to ask for instead."""
    head_dim, channels = geometry.head_dim, geometry.intermediate_size
    lines = []
    if head_dim % FLASH_ATTENTION_MULTIPLE:
        lines.append(f"head_dim {head_dim}: FlashAttention takes multiples of {FLASH_ATTENTION_MULTIPLE} only")
    elif head_dim not in ATTENTION_HEAD_DIMS:
        lines.append(
            f"head_dim {head_dim}: attention kernels are made for {', '.join(map(str, ATTENTION_HEAD_DIMS))}; others "
            "are padded on GPUs, and vLLM does not take them on CPUs"
        )
    if channels % TILE:
        lines.append(f"intermediate_size {channels}: no multiple of {TILE}; matrix kernels do up to twice the work")
    for name, (size, row) in cut_rows(geometry).items():
        if row % Q4_BLOCK:
            half = f"rows of {row} weights stay f16 in llama.cpp's q4_0 and q8_0 ({Q4_BLOCK})"
            lines.append(f"{name} {size}: {half}, and no groups of {GROUP} in 4 bits (GPTQ, AWQ)")
        elif row % K_QUANT_BLOCK:
            groups = "" if row % GROUP == 0 else f", and no groups of {GROUP} in 4 bits (GPTQ, AWQ)"
            none = f"rows of {row} weights have no K-quants in llama.cpp ({K_QUANT_BLOCK})"
            lines.append(f"{name} {size}: {none}{groups}")
    return lines


FLASH_ATTENTION_MULTIPLE = 8
# The only sizes that vLLM 0.32 supports on CPU; on GPUs attention kernels are made for them too.
ATTENTION_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
TILE = 64  # rows and columns that matrix kernels work on at a time, at least
Q4_BLOCK = 32  # weights of a row that q8_0 and q4_0 scale together, and mlx-lm with --q-group-size 32
K_QUANT_BLOCK = 256
GROUP = 128  # weights of a row that 4-bit kernels for GPUs scale together
LARGE_HIDDEN_SIZE = 2048  # from here on even coarse multiples are small beside the dimensions
LARGE_HEAD_DIM = 32  # elements that a quantised KV cache scales together


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """What one kind of software supports of a cut model.

    Attributes:
        multiples: granularity of the cut dimensions in a small model.
        large: the same in a model of `LARGE_HIDDEN_SIZE` and more.
        cuts_biased_heads: it takes heads of another size, or fewer, in a model whose queries and keys have biases.
        cuts_normed_pairs: it takes any set of rotary pairs in a model whose queries and keys are normalised.
        builds_layers: it takes layers with widths of their own.
        rotates_layers: it takes rotary pairs of single layers or heads.
    """

    multiples: Multiples
    large: Multiples
    cuts_biased_heads: bool = True
    cuts_normed_pairs: bool = True
    builds_layers: bool = True
    rotates_layers: bool = True


def _runtime(multiples: Multiples, **limits: bool) -> Runtime:
    head_dim = math.lcm(multiples.head_dim, LARGE_HEAD_DIM)
    return Runtime(
        multiples=multiples, large=replace(multiples, head_dim=head_dim, intermediate_size=K_QUANT_BLOCK), **limits
    )


_FINE = Multiples(head_dim=FLASH_ATTENTION_MULTIPLE, intermediate_size=8)
_GROUPS = Multiples(
    head_dim=FLASH_ATTENTION_MULTIPLE, intermediate_size=GROUP, row=GROUP, head_dims=ATTENTION_HEAD_DIMS
)
_BLOCKS = Multiples(head_dim=FLASH_ATTENTION_MULTIPLE, intermediate_size=Q4_BLOCK, row=Q4_BLOCK)
RUNTIMES = {
    "transformers": Runtime(multiples=_FINE, large=_FINE),
    "vllm": _runtime(replace(_BLOCKS, head_dims=ATTENTION_HEAD_DIMS, row=1), cuts_biased_heads=False),
    "llama_cpp": _runtime(_BLOCKS, cuts_normed_pairs=False, rotates_layers=False),
    "mlx": _runtime(
        _BLOCKS, cuts_biased_heads=False, cuts_normed_pairs=False, builds_layers=False, rotates_layers=False
    ),
    # vLLM with 4-bit weights in groups (GPTQ, AWQ), as `transact quantize` makes them.
    "gptq": _runtime(_GROUPS, cuts_biased_heads=False),
}
ANY = ("transformers", "vllm", "llama_cpp", "mlx")  # groups are coarse: who wants them asks for them


def check_layers(target: str, shapes: str, pair_scope: str) -> None:
    """Check that the software of a `prune.target` loads a model of these settings; "any" stands for no single one.

    Raises:
        ValueError: it builds all layers alike, or has one set of rotary pairs.
    """
    runtime = RUNTIMES.get(target)
    if runtime is not None and shapes != "uniform" and not runtime.builds_layers:
        raise ValueError(f"prune.shapes={shapes!r} is not allowed with prune.target={target}: it must be uniform")
    if runtime is not None and pair_scope != "model" and not runtime.rotates_layers:
        setting = f"prune.method.pair_scope={pair_scope!r}"
        raise ValueError(f"{setting} is not allowed with prune.target={target}: it must be model")


def multiples_for(target: str, parent: Geometry, *, pairs_are_free: bool) -> Multiples:
    """Return the granularity of the cut dimensions for a `prune.target`; "any" means all of `ANY` at once.

    Args:
        target: the name.
        parent: the dense model.
        pairs_are_free: heads may lose any rotary pairs, not only such that the rest are in progression.
    """
    runtimes = [RUNTIMES[name] for name in (ANY if target == "any" else (target,))]
    is_large = parent.hidden_size >= LARGE_HIDDEN_SIZE
    both = _common([each.large if is_large else each.multiples for each in runtimes])
    if parent.query_key_value_bias and not all(each.cuts_biased_heads for each in runtimes):
        return replace(both, keeps_attention=True)
    if parent.query_key_norm and pairs_are_free and not all(each.cuts_normed_pairs for each in runtimes):
        return replace(both, head_dims=())
    return both


def _common(found: Sequence[Multiples]) -> Multiples:
    """Return the finest granularity that suits all of them."""
    return Multiples(
        head_dim=math.lcm(*(each.head_dim for each in found)),
        intermediate_size=math.lcm(*(each.intermediate_size for each in found)),
        head_dims=_intersection(each.head_dims for each in found),
        row=math.lcm(*(each.row for each in found)),
    )


def _intersection(lists: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return the sizes that are on every list; None where there is no list."""
    given = [each for each in lists if each is not None]
    return tuple(sorted(set(given[0]).intersection(*given))) if given else None
