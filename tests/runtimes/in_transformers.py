"""Generate with transformers, whichever is on the path, as worker.py says."""

from __future__ import annotations

from worker import Answer, serve


def answer(folder: str, prompt: list[int], new_tokens: int) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    with torch.no_grad():
        settings = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        whole = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **settings)
        told = torch.log_softmax(model(whole).logits[0].float(), dim=-1)
    tokens = whole[0, len(prompt) :].tolist()
    logprobs = [float(told[place, token]) for place, token in enumerate(whole[0, 1:].tolist())]
    of_prompt, of_answer = logprobs[: len(prompt) - 1], logprobs[len(prompt) - 1 :]
    return {"tokens": tokens, "logprobs": of_answer, "prompt_logprobs": of_prompt, "by": type(model).__name__}


if __name__ == "__main__":
    serve(answer)
