"""Every setting declares what it may be, and everything outside of that is refused in one line."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.support.configs import compose_config
from transact.config import compose
from transact.config.compose import differences, to_dictionary, typed_config
from transact.config.run import RunConfig
from transact.config.setting import (
    LONGEST_SHOWN,
    all_fields,
    allowed_in,
    is_dictionary,
    is_list,
    is_printable,
    scalar_types,
    shown,
)
from transact.errors import one_line

FIELDS = {name: (allowed_in(declared), hint) for name, declared, hint in all_fields(RunConfig)}
NUMBERS = [name for name, (_, hint) in FIELDS.items() if scalar_types(hint) & {int, float}]
TEXTS = [name for name, (_, hint) in FIELDS.items() if str in scalar_types(hint)]
CONTROL = ["a\nb", "a\rb", "\x1b[2Ja", "a\x00", "\x7f", "\x9b31m", "\ud800", "a\u2028b", "\u202egnp.exe"]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_bounded_on_both_sides(name: str) -> None:
    allowed, _ = FIELDS[name]
    assert (allowed.at_least is None) != (allowed.above is None), f"{name} declares no lower bound"
    assert (allowed.at_most is None) != (allowed.below is None), f"{name} declares no upper bound"


def beyond(name: str) -> list[Any]:
    """Values outside of what a setting declares."""
    allowed, hint = FIELDS[name]
    if name in TEXTS:
        control = [each for each in CONTROL if not (allowed.has_breaks and each == "a\nb")]
        return [*control, "x" * (allowed.longest + 1), "", " "] + (["nonsense"] if allowed.choices else [])
    low = allowed.above if allowed.above is not None else allowed.at_least
    high = allowed.below if allowed.below is not None else allowed.at_most
    assert low is not None
    assert high is not None
    whole: list[Any] = [low - (0 if allowed.above is not None else 1), high + (0 if allowed.below is not None else 1)]
    whole = [int(each) for each in whole] if int in scalar_types(hint) else [float(each) for each in whole]
    if int in scalar_types(hint):
        return [*whole, 10**400, -(10**400), 2**64, "many", 1.5, math.inf, math.nan]
    tiny = [math.nextafter(low, -math.inf)] if allowed.above is None else [low]
    return [*whole, *tiny, math.inf, -math.inf, math.nan, 10**400, "nan", "inf", "many"]


def wrong_shapes(hint: Any) -> list[Any]:
    if is_list(hint):
        return [[["a"]], {"a": 1}, "a"]
    return [["a"], "a"] if is_dictionary(hint) else [[1], {"a": 1}]


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    """With an entry of every dictionary of sections, under the name `own`."""
    config = to_dictionary(compose_config(["name=sound", "model=llama2_7b"]))
    config["eval"]["texts"] = {"own": {"source": "python_stdlib"}}
    config["data"]["train"] |= {"source": "mixture", "sources": {"own": {"source": "python_stdlib", "weight": 1.0}}}
    return config


def refusals(sound: dict[str, Any], name: str, value: Any) -> str:
    config = copy.deepcopy(sound)
    name, place = name.replace("*", "own"), config
    *groups, last = name.split(".")
    for group in groups:
        place = place[group]
    place[last] = value
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        typed_config(config)
    return str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prune": {"method": {"ridge": 1}, "round_shares": [1], "multiple": {}}, "recover": {"learning_rate": 1}},
        {"model": {"architecture": {"rope_theta": 10000}}, "track": {"tags": ["a"]}},
        {"name": "a", "output_dir": "outputs/${name}", "eval": {"tasks": {"piqa": 5}}, "seed": 0},
    ],
)
def test_what_is_not_said_is_as_if_its_default_was(changed: dict[str, Any], sound: dict[str, Any]) -> None:
    """All values converted by OmegaConf, types included, and written down again."""
    given = OmegaConf.to_container(OmegaConf.merge(sound, changed))
    assert isinstance(given, dict)
    converted = OmegaConf.merge(OmegaConf.structured(RunConfig), given)
    found = typed_config(given)
    assert repr(found) == repr(OmegaConf.to_object(converted))
    assert json.dumps(to_dictionary(found)) == json.dumps(OmegaConf.to_container(converted, resolve=True))


@pytest.mark.parametrize(
    "overrides",
    [
        ["prune.method.ridge=1", "+experiment=llama7b_50pct", "prune/method=taylor", "output_dir='a/${name}'"],
        ["name=x", "data=local", "data.train.files=[a,b]", "data.evaluation.files=[c]", "data.train.files=[d]"],
        ["name=x", "+eval.texts.own={source: python_stdlib, part: heldout}", "eval.task_limit=3"],
    ],
)
def test_tests_are_given_what_is_composed_whole(overrides: list[str]) -> None:
    """Though they share what the same files say."""
    assert compose_config(overrides) == compose.compose_config(overrides)


@pytest.mark.parametrize("name", [*NUMBERS, *TEXTS])
def test_what_is_outside_of_the_declaration_is_refused(name: str, sound: dict[str, Any]) -> None:
    allowed, hint = FIELDS[name]
    for value in beyond(name):
        wrapped = {"own": value} if is_dictionary(hint) else [value] if is_list(hint) else value
        told = refusals(sound, name, wrapped)
        assert one_line(told) == one_line(one_line(told))
        assert is_printable(one_line(told))
    for wrong in wrong_shapes(hint):
        refusals(sound, name, wrong)
    if is_list(hint) or is_dictionary(hint):
        many = allowed.entries[1] + 1
        one = "a" if str in scalar_types(hint) else 5
        refusals(sound, name, {f"a{i}": one for i in range(many)} if is_dictionary(hint) else [one] * many)


@pytest.mark.parametrize("name", [name for name, (allowed, _) in FIELDS.items() if allowed.keys])
@pytest.mark.parametrize("key", [*CONTROL, "", "a b", "a/b", "x" * 300])
def test_names_of_ones_own_are_plain(name: str, key: str, sound: dict[str, Any]) -> None:
    texts: dict[str, Any] = {"eval.texts": {}, "data.train.sources": {"weight": 1}}
    one: Any = {"source": "python_stdlib", **texts[name]} if name in texts else 1
    refusals(sound, name, {key: one})


def test_a_secret_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"launch.setup=\(not shown\)"):
        typed_config({"launch": {"setup": ["export KEY=planted\nexport OTHER=planted"]}})
    with pytest.raises(ValueError, match=r"launch.setup=\(not shown\) is not allowed: it takes a list"):
        typed_config({"launch": {"setup": "export KEY=planted"}})


@pytest.mark.parametrize(
    "value",
    [None, True, False, 3, 1.5, "word", "it's", "null", "", [], {}, [None, True, ["a"]], {"a": None, "b": [False]}],
)
def test_a_message_shows_a_value_as_yaml(value: Any) -> None:
    assert yaml.safe_load(shown(value)) == value


def test_messages_say_null_and_false_as_users_write_them() -> None:
    with pytest.raises(ValueError, match=r"^launch\.wait=false is not allowed: launch=inline has no use for it$"):
        compose_config(["name=run", "launch.wait=false"])
    with pytest.raises(ValueError, match=r"^engine\.dtype=true is not allowed: it must be one of"):
        compose_config(["name=run", "engine.dtype=true"])
    with pytest.raises(ValueError, match=r"^seed: Value 'abc' of type 'str' could not be converted to Integer$"):
        compose_config(["name=run", "seed=abc"])
    config = to_dictionary(compose_config(["name=run"]))
    changed = copy.deepcopy(config)
    changed["prune"] |= {"head_dim": 32, "remove_fraction": None}
    assert differences(config, changed) == ["prune.head_dim: null -> 32", "prune.remove_fraction: 0.5 -> null"]
    assert len(shown("x" * 10**4)) < LONGEST_SHOWN + 5


def test_a_setting_that_an_older_run_did_not_have_was_at_its_default() -> None:
    config = to_dictionary(compose_config(["name=run"]))
    older = config | {
        "recover": {name: value for name, value in config["recover"].items() if name != "rate_after_rise"}
    }
    assert differences(older, config) == []
    lowered = config | {"recover": config["recover"] | {"rate_after_rise": 0.1}}
    assert differences(older, lowered) == ["recover.rate_after_rise: 0.5 -> 0.1"]
