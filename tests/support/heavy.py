"""What the command imports late, and what takes long to import."""

import datasets  # noqa: F401
import deepspeed  # noqa: F401
import pyarrow.parquet  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401
