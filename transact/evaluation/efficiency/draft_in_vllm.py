"""A pruned model as its parent's draft in vLLM, in an environment of its own, which this file is a script of too.

vLLM pins other versions than transact, so that its interpreter is asked: parent alone, then with the draft, each in a
process that ends with it. Imports nothing of transact but when it is called from there.

    PYTHON draft_in_vllm.py QUESTION.json ANSWER.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

PROPOSALS = 3  # tokens that the draft proposes at a time
COUNTERS = {
    "drafts": "vllm:spec_decode_num_drafts",
    "proposed": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}


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
    question = {"parent": str(parent), "prompts": prompts, "new_tokens": new_tokens, "turns": turns, "dtype": dtype}
    alone = _ask(python, question | {"draft": None})
    helped = _ask(python, question | {"draft": str(draft)})
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


def _ask(python: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    from transact.errors import one_line

    with TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "question.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(question), encoding="utf-8")
        try:
            command = [str(python), __file__, str(asked), str(answered)]
            # Not this environment's packages, which PYTHONPATH may name.
            variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=variables, check=False)
        except OSError as error:
            raise ValueError(f"--vllm={str(python)!r} cannot be run: {error.strerror}") from None
        if done.returncode or not answered.is_file():
            last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
            raise ValueError(f"--vllm={str(python)!r}: vLLM failed: {one_line(last)}")
        found: dict[str, Any] = json.loads(answered.read_bytes())
    return found


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Generate in turns, in vLLM; return the last turn's tokens, the seconds of each but the first, and all counts."""
    # On CPUs vLLM reserves most of the memory unless told how many GiB the caches of this one sequence may take.
    plain = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= plain | dict(os.environ) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    import vllm  # type: ignore[import-not-found]  # in an environment of its own

    config = asked["draft"] and {
        "model": asked["draft"],
        "num_speculative_tokens": PROPOSALS,
        "method": "draft_model",
    }
    model = vllm.LLM(
        asked["parent"],
        dtype=asked["dtype"],
        max_num_seqs=1,
        max_model_len=max(map(len, asked["prompts"])) + asked["new_tokens"] + PROPOSALS + 1,
        trust_remote_code=True,
        disable_log_stats=False,
        speculative_config=config or None,
    )
    settings = vllm.SamplingParams(temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True, detokenize=False)
    seconds: list[float] = []
    tokens: list[list[int]] = []
    for _ in range(asked["turns"] + 1):
        begun = time.monotonic()
        tokens = [
            list(model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)[0].outputs[0].token_ids)
            for prompt in asked["prompts"]
        ]
        seconds.append(time.monotonic() - begun)
    counted = {each.name: each.value for each in model.get_metrics() if each.name in COUNTERS.values()}
    counts = {name: counted.get(counter, 0) for name, counter in COUNTERS.items()}
    return {"tokens": tokens, "seconds": seconds[1:], "counts": counts, "version": vllm.__version__}


if __name__ == "__main__":
    question_file, answer_file = map(Path, sys.argv[1:3])
    answer_file.write_text(json.dumps(answer(json.loads(question_file.read_bytes()))), encoding="utf-8")
