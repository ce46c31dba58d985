"""Chat with the file that transact writes for ExecuTorch, in its own runner for language models, as worker.py says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from worker import Answer, serve

from transact.export.executorch import write_executorch

CONTEXT = 256  # tokens


def answer(folder: str, messages: list[dict[str, str]], new_tokens: int) -> Answer:
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from pytorch_tokenizers import get_tokenizer
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(folder)
    prompt = template.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokenizer = Path(folder) / "tokenizer.json"
    tokens = get_tokenizer(str(tokenizer)).encode(prompt, bos=False, eos=False)
    said: list[str] = []
    with TemporaryDirectory() as work:
        file = Path(work) / "model.pte"
        write_executorch(Path(folder), file, "xnnpack", CONTEXT)
        runner = TextLLMRunner(str(file), str(tokenizer))
        asked = GenerationConfig(max_new_tokens=new_tokens, temperature=0.0, echo=False, num_bos=0)
        runner.generate(prompt, asked, said.append, None)
    return {"prompt": tokens, "answer": "".join(said).removesuffix(template.eos_token)}


if __name__ == "__main__":
    serve(answer)
