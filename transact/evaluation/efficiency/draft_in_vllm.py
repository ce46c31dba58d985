"""A pruned model as its parent's draft in vLLM, in an environment of its own, which this file is a script of too.

vLLM pins other versions than transact, so that its interpreter is asked: parent alone, then with the draft, each in a
process that ends with it. Imports nothing of transact but when it is called from there.

    PYTHON draft_in_vllm.py QUESTION.json ANSWER.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

PROPOSALS = 3  # tokens that the draft proposes at a time
COUNTERS = {
    "drafts": "vllm:spec_decode_num_drafts",
    "proposed": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}


def check_vllm(python: Path) -> None:
    """Raise ValueError unless this is the interpreter of an environment with vLLM."""
    from transact.evaluation.other_python import asked

    asked("--vllm", python, Path(__file__), {"parent": None})


def measure_in_vllm(
    python: Path, parent: Path, draft: Path, prompts: list[list[int]], new_tokens: int, turns: int, dtype: str
) -> dict[str, Any]:
    """Return what `measure_draft` does of speculative decoding, by vLLM: wall time, all prompts one after another.

    Args:
        python: the interpreter of an environment with vLLM.
        prompts: tokens.
        dtype: that vLLM computes in.

    Raises:
        ValueError: vLLM is not there, or does not take the models; with its last words.
    """
    from transact.evaluation.other_python import asked
    from transact.models.stock import check_code

    has_code = check_code(parent) | check_code(draft)  # not `or`: both are to be checked
    settings = {"prompts": prompts, "new_tokens": new_tokens, "turns": turns, "dtype": dtype}
    question = {"parent": str(parent.absolute()), "has_code": has_code} | settings
    alone, helped = (
        asked("--vllm", python, Path(__file__), question | {"draft": each}) for each in (None, str(draft.absolute()))
    )
    counts = helped["counts"]
    generations = len(prompts) * (turns + 1)  # the first turn warms up, and is counted too
    forwards = generations + counts["drafts"]  # of the parent: one reads the prompt, one checks what a draft proposes
    told = [token for answer in alone["tokens"] for token in answer]
    same = [token for answer in helped["tokens"] for token in answer]
    return {
        "proposals": PROPOSALS,
        "proposed": counts["proposed"],
        "accepted": counts["accepted"],
        "acceptance_rate": counts["accepted"] / counts["proposed"],
        "tokens_per_parent_forward": generations * new_tokens / forwards,
        "same_tokens": sum(one == other for one, other in zip(told, same, strict=True)) / len(told),
        "wall_speed_up": median(alone["seconds"]) / median(helped["seconds"]),
        "version": helped["version"],
    }


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Generate in turns, in vLLM; return the last turn's tokens, the seconds of each but the first, and all counts."""
    # On CPUs vLLM reserves most of the memory unless told how many GiB the caches of this one sequence may take.
    plain = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= plain | dict(os.environ) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    import vllm  # type: ignore[import-not-found]  # in an environment of its own

    if question["parent"] is None:
        return {"version": vllm.__version__}
    proposing = {"num_speculative_tokens": PROPOSALS, "method": "draft_model"}
    config = question["draft"] and {"model": question["draft"]} | proposing
    model = vllm.LLM(
        question["parent"],
        dtype=question["dtype"],
        max_num_seqs=1,
        max_model_len=max(map(len, question["prompts"])) + question["new_tokens"] + PROPOSALS + 1,
        trust_remote_code=question["has_code"],
        disable_log_stats=False,
        enable_prefix_caching=False,  # every turn reads the same prompts, and is to read them
        speculative_config=config or None,
    )
    settings = vllm.SamplingParams(temperature=0, max_tokens=question["new_tokens"], ignore_eos=True, detokenize=False)
    seconds: list[float] = []
    tokens: list[list[int]] = []
    for _ in range(question["turns"] + 1):
        begun = time.monotonic()
        tokens = [
            list(model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)[0].outputs[0].token_ids)
            for prompt in question["prompts"]
        ]
        seconds.append(time.monotonic() - begun)
    counted = {each.name: each.value for each in model.get_metrics() if each.name in COUNTERS.values()}
    counts = {name: counted.get(counter, 0) for name, counter in COUNTERS.items()}
    return {"tokens": tokens, "seconds": seconds[1:], "counts": counts, "version": vllm.__version__}


if __name__ == "__main__":
    question_file, answer_file = map(Path, sys.argv[1:3])
    answer_file.write_text(json.dumps(answer(json.loads(question_file.read_bytes()))), encoding="utf-8")
