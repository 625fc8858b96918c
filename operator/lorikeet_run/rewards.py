"""What answers are rewarded for that needs no model: regular expressions, JSON Schemas, columns of the row."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final

from jsonschema import Draft202012Validator, ValidationError, validators  # type: ignore[import-untyped]
from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
from pydantic import StringConstraints, TypeAdapter
from pydantic import ValidationError as NotFound
from pydantic_core import SchemaError as PatternError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from lorikeet_api.objectives import Objective
from lorikeet_run.errors import RunError

Rule = Callable[[str, Mapping[str, str]], float]
"""Gives an answer, white space around it left out, its reward, by the columns of the prompt's row."""

_REMOTE: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_DATA: Final = ("const", "default", "enum", "examples")
"""Keywords whose values are no schemas."""
_NAMES: Final = ("$defs", "definitions", "dependentSchemas", "properties")
"""Keywords whose values are schemas by names of any kind."""


def rules(objective: Objective) -> list[Rule | None]:
    """Return the rule of each reward of rlhf, None for a reward model. Raises RunError (InvalidContract)."""
    found: list[Rule | None] = []
    for number, reward in enumerate(objective.rlhf.rewards if objective.rlhf is not None else []):
        where = f"objective.rlhf.rewards[{number}]"
        if reward.regex is not None:
            found.append(_has(_searcher(reward.regex.pattern, f"{where}.regex.pattern")))
        elif reward.json_schema is not None:
            found.append(_conforms(_validator(reward.json_schema, f"{where}.jsonSchema")))
        elif reward.match is not None:
            found.append(_equals(reward.match.column))
        else:
            found.append(None)
    return found


def _has(search: Callable[[str], bool]) -> Rule:
    return lambda answer, columns: float(search(answer))


def _equals(name: str) -> Rule:
    return lambda answer, columns: float(answer == columns[name].strip())


def _conforms(validator: Any) -> Rule:
    def rule(answer: str, columns: Mapping[str, str]) -> float:
        try:
            return float(validator.is_valid(json.loads(answer, parse_constant=_no_number)))
        except (ValueError, ArithmeticError, RecursionError):
            return 0.0

    return rule


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _searcher(pattern: str, where: str) -> Callable[[str], bool]:
    """Return whether a pattern is found in a text, in time linear in its length: by Rust's regex, as pydantic has it.

    Raises RunError (InvalidContract).
    """
    try:
        adapter = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except PatternError as error:
        why = str(error).strip().splitlines()[-1].strip().removeprefix("error: ")
        raise RunError(
            "InvalidContract",
            f"{where} is no regular expression that is searched in bounded time ({why}): write it as Rust's regex takes"
            " it, which is RE2's syntax, without look-around and backreferences",
        ) from error

    def search(text: str) -> bool:
        try:
            adapter.validate_python(text)
        except NotFound:
            return False
        return True

    return search


def _validator(text: str, where: str) -> Any:
    """Return jsonschema's validator of a schema, which fetches nothing and searches no pattern that takes long.

    Raises RunError (InvalidContract).
    """
    try:
        schema = json.loads(text)
        kind = validators.validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        searchers = {}
        resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver("")
        for key, value in _keywords(schema):
            if key == "patternProperties":
                raise ValueError("patternProperties is not taken: name the properties")
            if key == "pattern":
                searchers[value] = _searcher(value, f"{where}: pattern {value!r}")
            elif key in _REMOTE:
                resolver.lookup(value)

        def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[Any]:
            if validator.is_type(instance, "string") and not searchers[wanted](instance):
                yield ValidationError(f"{instance!r} does not match {wanted!r}")

        made = validators.extend(kind, {"pattern": pattern})(schema, registry=Registry())
        simplest: tuple[object, ...] = (None, True, 0, "", [], {})
        for instance in simplest:
            made.is_valid(instance)
    except (ValueError, SchemaError, Unresolvable, RecursionError) as error:
        why = error.message if isinstance(error, SchemaError) else str(error) or type(error).__name__
        raise RunError(
            "InvalidContract",
            f"{where} is no JSON Schema that can be used ({why}): correct it; $ref may name parts of the schema itself,"
            " by #/…",
        ) from error
    return made


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keywords of a schema that need a look, of all its parts."""
    if isinstance(schema, list):
        for each in schema:
            yield from _keywords(each)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _DATA:
            continue
        if key == "patternProperties" or (key in ("pattern", *_REMOTE) and isinstance(value, str)):
            yield key, value
        elif key in _NAMES and isinstance(value, dict):
            yield from _keywords(list(value.values()))
        else:
            yield from _keywords(value)
