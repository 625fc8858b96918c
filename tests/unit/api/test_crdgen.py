"""The CRDs: structural, described, bounded, and those that are committed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.crdgen import RESOURCES, definition, render

ROOT = Path(__file__).resolve().parents[3]
FORBIDDEN = {"$ref", "allOf", "oneOf", "const", "title", "patternProperties", "propertyNames", "discriminator"}


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from schemas(each, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from schemas(schema[key], f"{path}[]")


EVERY = [
    (resource.__name__ + path, schema)
    for resource in RESOURCES
    for path, schema in schemas(definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
]


def test_the_committed_files_are_what_the_models_say() -> None:
    for folder in ("crds", "charts/lorikeet/files/crds"):
        assert {path.name: path.read_text() for path in (ROOT / folder).iterdir()} == render()


def test_there_is_nothing_that_a_structural_schema_cannot_hold() -> None:
    assert [path for path, schema in EVERY if FORBIDDEN & schema.keys()] == []


def test_every_field_is_described() -> None:
    assert [path for path, schema in EVERY if not path.endswith("]") and not path.endswith("metadata")
            and not schema.get("description")] == []  # fmt: skip


@pytest.mark.parametrize(("kind", "bound"), [("array", "maxItems"), ("string", "maxLength")])
def test_every_list_and_string_of_a_spec_is_bounded(kind: str, bound: str) -> None:
    loose = [
        path
        for path, schema in EVERY
        if ".spec" in path and schema.get("type") == kind and bound not in schema and "enum" not in schema
    ]
    assert loose == []


def test_defaults_that_depend_on_the_method_are_told() -> None:
    told = dict(EVERY)["FineTuneJob.spec.training.learningRate"]["description"]
    assert "Default: 0.0002 (lora sft, qlora sft), 0.0001 (bottleneck sft, lora reward, qlora reward), " in told
    assert "5e-06 (lora dpo, qlora dpo, lora kto, qlora kto, full orpo)" in told


def test_status_has_neither_defaults_nor_rules() -> None:
    status = [schema for path, schema in EVERY if path.startswith("FineTuneJob.status")]
    assert status
    assert not [schema for schema in status if {"default", "x-kubernetes-validations"} & schema.keys()]
