"""What every resource model shares: camelCase on the wire, no unknown fields, and bounded types.

Every string, list and map has an upper bound: without one the API server refuses a CRD whose CEL
rules it cannot cost.
"""

from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Model(BaseModel):
    """Base of all models: camelCase aliases, unknown fields refused, instances immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        strict=True,
    )

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules across fields that the API server checks; the model's validators check the same."""
        return []

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if rules := cls.cel_rules():
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = rules
        return schema

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON-able camelCase form, without fields that are absent."""
        return self.model_dump(mode="json", exclude_none=True)


def cel(rule: str, message: str, **more: str) -> dict[str, str]:
    """Return one `x-kubernetes-validations` entry (`rule`, `message`, and for example `fieldPath`)."""
    return {"rule": rule, "message": message, **more}


def listed(low: int, high: int) -> Any:
    """Return the bounds of a list that is replaced as a whole."""
    return Field(min_length=low, max_length=high, json_schema_extra={"x-kubernetes-list-type": "atomic"})


WHOLE: Final = Field(json_schema_extra={"x-kubernetes-map-type": "atomic"})
"""An object that is replaced as a whole: the API server then keeps no owner for each of its fields."""


def mapped(key: str, high: int) -> Any:
    """Return the bounds of a list whose items are merged by `key`, which must be unique."""
    return Field(
        max_length=high,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]},
    )


def unique(key: str) -> AfterValidator:
    """Return a validator that refuses two items with the same `key`, as the API server does."""

    def check(items: list[Any]) -> list[Any]:
        values = [getattr(item, key) for item in items]
        if len(set(values)) < len(values):
            raise ValueError(f"two items have the same {key}")
        return items

    return AfterValidator(check)


DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
QUALIFIED_NAME = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
)
LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
# What apimachinery's resource.Quantity parses, without a sign: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
QUANTITY = r"^([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"

ObjectName = Annotated[str, StringConstraints(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]
LabelKey = Annotated[str, StringConstraints(pattern=QUALIFIED_NAME, min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", min_length=1, max_length=128)]
Text = Annotated[str, StringConstraints(max_length=1024)]
QuantityText = Annotated[str, StringConstraints(pattern=QUANTITY, min_length=1, max_length=32)]
Quantity = Annotated[
    QuantityText | Annotated[int, Field(ge=0)],
    Field(description="A Kubernetes quantity: `2`, `500m`, `16Gi`."),
]
Image = Annotated[
    str,
    StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$", min_length=1, max_length=512),
]
# Blanks are named one by one: what `\s` means differs between pydantic's regular expressions and the API server's.
_BLANK = r"\x00-\x20\x7f" + "\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SEGMENT = rf"[^{_BLANK}/?#]+"
_BUCKET = r"[a-z0-9][a-z0-9.-]+[a-z0-9]"
S3_URI = rf"^s3://{_BUCKET}(/{_SEGMENT})*/?$"
SOURCE_URI = (
    rf"^(s3://{_BUCKET}(/{_SEGMENT})*/?|hf://{_SEGMENT}(/{_SEGMENT})+"
    rf"|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/{_SEGMENT})+/?)$"
)
"""One path segment after the other, none empty or with a blank; the scheme decides who reads it."""
SourceUri = Annotated[str, StringConstraints(pattern=SOURCE_URI, min_length=6, max_length=1024)]
S3Uri = Annotated[str, StringConstraints(pattern=S3_URI, min_length=6, max_length=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]


class NameReference(Model):
    """A reference to an object in the same namespace (or without one) by its name."""

    name: ObjectName
    """Name of the object."""


def first_error(error: ValidationError) -> str:
    """Return the first thing that is wrong with a model, and how many there are."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']} ({error.error_count()} errors in all)"


def exactly_one(model: type[Model], what: str) -> dict[str, str]:
    """Return the rule that exactly one field of a union is set."""
    arms = list(model.model_fields)
    flags = ", ".join(f"has(self.{arm})" for arm in arms)
    return cel(f"[{flags}].filter(x, x).size() == 1", f"give exactly one {what}: {', '.join(arms)}")
