"""What model cards say in the same words: how a model is loaded, what other software does with it, what to cite."""

from __future__ import annotations

USAGE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Stock transformers load it, 4.x and 5; no code of transact is needed, nor `trust_remote_code`.
"""

CHAT_USAGE = """\
It answers in the chat format of its parent:

```python
messages = [{"role": "user", "content": "Name three rivers."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

LAYERWISE_USAGE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Its layers differ, and no class of transformers builds such layers yet: {files} in this folder does, in a few lines on \
top of transformers' own LLaMA, from version 5.14 on. {vllm}
"""
IN_VLLM = "vLLM serves it as its own `DeciLMForCausalLM` (with `--trust-remote-code` as well)."
IN_VLLM_BY_CODE = (
    "vLLM serves it by that code (`--trust-remote-code`, its Transformers backend): its own class for layers that "
    "differ gives all of them the same query heads, and rotates them alike."
)
GGUF_OF_LAYERS = """\
The command of the run, once more, with {types} writes a file for llama.cpp, which computes such layers.
"""
GGUF_OF_LAYERS_NOWHERE = """\
There is no file for llama.cpp: it has no place for rotary frequencies of layers or heads, or knows no such tokenizer.
"""

CITATION = """\
## Cite

```bibtex
@article{shen2024transact,
  title   = {Pruning Large Language Models to Intra-module Low-rank Architecture with Transitional Activations},
  author  = {Shen, Bowen and Lin, Zheng and Zha, Daren and Liu, Wei and Luan, Jian and Wang, Bin and Wang, Weiping},
  journal = {arXiv preprint arXiv:2407.05690},
  year    = {2024}
}
```
"""

GGUF_HERE = "the command of the run, once more, with {types} writes a file for llama.cpp."
GGUF_NOWHERE = (
    "there is none for this model: llama.cpp takes the rotary frequencies of its family from `rope_theta` alone "
    "(`prune.rotary_pairs=progression` makes a model for which that is enough), or knows no such tokenizer."
)
GGUF_WARNING = """\
**GGUF only through transact**: {how} llama.cpp's own converter would leave out the frequencies of the kept rotary \
pairs and write a file that computes nonsense, without an error. A tensor of an unknown name stops it here \
(transformers skips it); in a copy made with `save_pretrained` it is gone.
"""
GGUF_FLOAT16 = """\
In llama.cpp's quantised types the weights of {names} stay float16: their rows do not divide into \
blocks of 32.
"""
