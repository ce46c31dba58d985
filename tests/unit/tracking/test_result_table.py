"""The table at the end of a run."""

import copy
import io
from typing import Any

from transact.tracking.result_table import result_table

ROUND = {"geometry": {}, "tokens": 100, "seconds": 1.0}
RESULT: dict[str, Any] = {
    "name": "tiny",
    "remove_fraction": {"asked": 0.5, "reached": 0.4966},
    "dense": {"parameters": 2_560_000, "kv_bytes_per_token": 6144, "perplexity": 23.16},
    "pruned": {"parameters": 1_288_704, "kv_bytes_per_token": 3072, "perplexity": 27.9},
    "rounds": [
        {
            **ROUND,
            "round": 1,
            "parameters": 1_800_000,
            "perplexity_sliced": 12345.678,
            "perplexity_recovered": 25.0,
        },
        {
            **ROUND,
            "round": 2,
            "parameters": 1_288_704,
            "perplexity_sliced": 61.5,
            "perplexity_recovered": None,  # JSON has no infinity
        },
    ],
}


def table(result: dict[str, Any], width: int = 100) -> list[str]:
    stream = io.StringIO()
    result_table(result, stream, width)
    return stream.getvalue().splitlines()


def test_every_round_is_shown_sliced_and_recovered() -> None:
    lines = table(RESULT)
    assert lines[0] == "tiny: 49.7% of the parameters removed, 50.0% asked"
    assert [line.split() for line in lines[4:-1]] == [
        ["dense", "2,560,000", "100.0%", "6,144", "23.16"],
        ["round", "1", "sliced", "1,800,000", "70.3%", "-", "12,345.68"],
        ["round", "1", "recovered", "1,800,000", "70.3%", "-", "25.00"],
        ["round", "2", "sliced", "1,288,704", "50.3%", "3,072", "61.50"],
        ["round", "2", "recovered", "1,288,704", "50.3%", "3,072", "-"],
    ]


def test_a_round_without_recovery_has_no_row_for_one() -> None:
    result = copy.deepcopy(RESULT)
    for each in result["rounds"]:
        each |= {"tokens": 0, "perplexity_recovered": None}
    assert [line.split()[2] for line in table(result)[5:-1]] == ["sliced", "sliced"]


def test_the_title_names_the_point_of_a_sweep() -> None:
    stream = io.StringIO()
    result_table(RESULT, stream, point="prune.remove_fraction=0.5")
    assert stream.getvalue().startswith("tiny prune.remove_fraction=0.5: 49.7% of the parameters removed")


def test_columns_are_aligned() -> None:
    assert len({len(line) for line in table(RESULT)[1:]}) == 1


def test_a_round_may_know_its_own_cache_size() -> None:
    result = copy.deepcopy(RESULT)
    result["rounds"][0]["kv_bytes_per_token"] = 4608
    assert "4,608" in table(result)[5]


def test_lines_are_cut_rather_than_wrapped() -> None:
    lines = table(RESULT, width=40)
    assert len(lines) == len(table(RESULT))
    assert max(map(len, lines)) == 40


def test_what_was_not_a_number_is_no_figure() -> None:
    result = copy.deepcopy(RESULT)
    result["dense"] |= {"texts": {"news": {"perplexity": 20.0, "tokens": 99}}, "tasks": {"cola": {"mcc": 0.2}}}
    result["pruned"] |= {"texts": {"news": {"perplexity": None, "tokens": 99}}, "tasks": {"cola": {"mcc": None}}}
    assert [line.split()[-1] for line in table(result)[-3:-1]] == ["-", "-"]


def test_a_model_that_was_trained_and_not_cut_is_called_so() -> None:
    result = copy.deepcopy(RESULT) | {"rounds": [], "pruned": None, "remove_fraction": {"asked": None, "reached": 0.0}}
    lines = table(result)
    assert lines[0] == "tiny: trained" and len(lines) == 6


def test_says_of_what_the_perplexities_are_where_they_are_not_those_of_a_stream() -> None:
    result = copy.deepcopy(RESULT)
    kind = {"loss_of": "answers", "packing": "documents"}
    apart = {"perplexity": 20.0, "tokens": 99, "packing": "documents"}
    result["dense"] |= kind | {"texts": {"news": apart}}
    lines = table(result, width=60)
    assert lines[1] == "perplexity is that of the answers of documents apart"
    assert lines[2:10] == table(RESULT, width=60)[1:9]
    assert " ".join(lines[-2].split()) == "news perplexity of documents apart 20.00 -"


def test_says_which_texts_were_trained_on_in_part() -> None:
    result = copy.deepcopy(RESULT)
    seen = {"perplexity": 20.0, "tokens": 99, "documents_trained_on": 3}
    result["dense"] |= {"texts": {"seen": seen, "news": {"perplexity": 20.0, "tokens": 99}}}
    lines = table(result)
    assert lines[1] == "seen (documents trained on too: 3)"
    assert [line.split() for line in lines[-3:-1]] == [[name, "perplexity", "20.00", "-"] for name in ("seen", "news")]


def test_texts_and_tasks_stand_below_with_standard_errors() -> None:
    result = copy.deepcopy(RESULT)
    task = {"acc": 0.5, "acc_norm": 0.8, "documents": 101, "shots": 0}
    result["dense"] |= {"texts": {"news": {"perplexity": 20.0, "tokens": 99}}, "tasks": {"piqa": task}}
    result["pruned"] |= {
        "texts": {"news": {"perplexity": 31.254, "tokens": 99}},
        "tasks": {"piqa": task | {"acc": 0.2}},
    }
    lines = table(result)
    below = [line.split() for line in lines[lines.index(table(RESULT)[-2]) + 2 :] if not line.startswith("-")]
    assert below == [
        ["text", "or", "task", "metric", "dense", "pruned"],
        ["news", "perplexity", "20.00", "31.25"],
        ["piqa", "acc", "0.5000", "+-", "0.0500", "0.2000", "+-", "0.0400"],
        ["piqa", "acc_norm", "0.8000", "+-", "0.0400", "0.8000", "+-", "0.0400"],
    ]
