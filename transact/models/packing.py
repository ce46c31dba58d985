"""Several documents in one sequence: what makes attention keep to the document of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASKED = ("sdpa", "eager")  # attention that takes a mask; that of flash attention takes the ends of documents instead


def packing_arguments(position_ids: Tensor, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a forward of a stock model is given, so that no token attends to another document.

    transformers finds documents by itself too, but in flash attention only in a batch of one sequence, and for sdpa as
    a bool mask, of which PyTorch keeps a copy in every layer for the backward.

    Args:
        position_ids: (sequences, length), that begin anew at every document.
        attention: transformers' name of the attention implementation.
        dtype: of the computation.
    """
    if attention not in MASKED:
        return {"position_ids": position_ids, **ends_of_documents(position_ids)}
    return {"position_ids": position_ids, "attention_mask": document_mask(position_ids, dtype)}


def document_mask(position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to logits: (sequences, 1, length, length), 0 where a token attends, else the least number.

    It is causal within documents. position_ids: as of `packing_arguments`.
    """
    places = torch.arange(position_ids.shape[1], device=position_ids.device)
    first = (places - position_ids).unsqueeze(2)  # of the document of each query
    is_seen = (places >= first) & (places <= places.unsqueeze(1))
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=position_ids.device)
    return mask.masked_fill_(~is_seen, torch.finfo(dtype).min).unsqueeze(1)


def ends_of_documents(position_ids: Tensor) -> dict[str, Any]:
    """Return what flash attention of variable lengths is given. position_ids: as of `packing_arguments`."""
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    (ends, _), (longest, _) = prepare_fa_kwargs_from_position_ids(position_ids)
    longest = int(longest)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
