"""Rewards that need no model: what they give, what is refused, and that none of them takes long."""

import json
import time
from typing import Any

import pytest

from lorikeet_api.objectives import Objective
from lorikeet_run.errors import RunError
from lorikeet_run.rewards import Rule, rules

NAME: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def rule(**reward: Any) -> Rule:
    (found,) = rules(Objective.model_validate({"rlhf": {"rewards": [reward]}}))
    assert found is not None
    return found


def schema(**parts: Any) -> Rule:
    return rule(jsonSchema=json.dumps(parts))


@pytest.mark.parametrize(
    ("answer", "worth"), [("red", 1), ("red.", 0), ("it is red", 0), ("blue", 1), ("red\nblue", 0), ("", 0)]
)
def test_a_pattern_is_found_or_not(answer: str, worth: float) -> None:
    assert rule(regex={"pattern": "^(red|blue)$"})(answer, {}) == worth


def test_a_pattern_may_be_anywhere() -> None:
    assert rule(regex={"pattern": r"\b\d+ €"})("it costs 12 € or so", {}) == 1


@pytest.mark.parametrize(("answer", "worth"), [("Paris", 1), ("paris", 0), ("Paris.", 0), ("", 0)])
def test_an_answer_is_the_columns_or_not(answer: str, worth: float) -> None:
    assert rule(match={"column": "capital"})(answer, {"capital": " Paris\n"}) == worth


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ('{"name": "ada"}', 1),
        ('{"name": "ada", "age": 36}', 1),
        ('{"name": "ada", "age": -1}', 0),
        ('{"name": "Ada"}', 0),
        ('{"name": "ada", "more": 1}', 0),
        ('Here you are: {"name": "ada"}', 0),
        ('{"name": "ada", "age": NaN}', 0),
        ("{", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_an_answer_is_json_that_the_schema_takes_or_not(answer: str, worth: float) -> None:
    assert schema(**NAME)(answer, {}) == worth


@pytest.mark.parametrize("answer", ["1e400", "9" * 400])
def test_a_number_that_is_too_large_to_be_divided_is_worth_nothing(answer: str) -> None:
    assert schema(multipleOf=0.5)(answer, {}) == 0


def test_each_reward_has_its_rule_but_reward_models() -> None:
    rewards = [{"match": {"column": "a"}}, {"model": {"uri": "s3://adapters/run"}}, {"regex": {"pattern": "a"}}]
    found = rules(Objective.model_validate({"rlhf": {"rewards": rewards}}))
    assert [one is None for one in found] == [False, True, False]
    assert rules(Objective.model_validate({"sft": {}})) == []


@pytest.mark.parametrize("reward", [{"regex": {"pattern": "^(a+)+$"}}, {"jsonSchema": '{"pattern": "^(a+)+$"}'}])
def test_no_pattern_hangs_a_run(reward: dict[str, Any]) -> None:
    """By Python's own `re` this one would take longer than the universe has."""
    text = "a" * 5000 + "!"
    began = time.monotonic()
    assert rule(**reward)(json.dumps(text) if "jsonSchema" in reward else text, {}) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"regex": {"pattern": "("}}, r"rewards\[0\].regex.pattern is no regular expression .*unclosed group"),
        ({"regex": {"pattern": "(?=a)"}}, "look-around.*without look-around and backreferences"),
        ({"regex": {"pattern": r"(a)\1"}}, "backreferences are not supported"),
        ({"regex": {"pattern": "((a{999}){999}){999}"}}, "exceeds size limit"),
        ({"jsonSchema": "{,"}, r"rewards\[0\].jsonSchema is no JSON Schema that can be used"),
        ({"jsonSchema": '{"type": "text"}'}, "'text' is not valid"),
        ({"jsonSchema": '{"$ref": "https://example.com/schema"}'}, "example.com/schema.*parts of the schema itself"),
        ({"jsonSchema": '{"$ref": "#/$defs/none"}'}, "none"),
        ({"jsonSchema": '{"$ref": "#"}'}, "recursion"),
        ({"jsonSchema": '{"properties": {"a": {"pattern": "(?=a)"}}}'}, "look-around"),
        ({"jsonSchema": '{"patternProperties": {"(a+)+$": {}}}'}, "patternProperties is not taken"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_place(reward: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words) as refused:
        rule(**reward)
    assert refused.value.reason == "InvalidContract"


def test_a_property_may_be_called_as_a_keyword_is() -> None:
    assert schema(properties={"pattern": {"type": "string"}, "$ref": {}}, enum=[{"pattern": "(?=a)"}]) is not None
