"""What the command imports late, and what takes long to import."""

import gc

import datasets  # noqa: F401
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  # with which comes torch's compiler
import pyarrow.parquet  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

# Imported last: no collection in a forked process looks at all of this again, or copies its pages.
gc.freeze()
