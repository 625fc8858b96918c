"""What all resources share: metadata, and parsing what came from the API server or a file."""

from typing import Any, Self

from pydantic import ConfigDict

from lorikeet_api.base import Model


class ObjectMeta(Model):
    """The part of Kubernetes' object metadata that Lorikeet reads; the rest is kept out of the way."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """Name of the object."""
    namespace: str | None = None
    """Namespace of a namespaced object."""
    uid: str | None = None
    """Identity given by the API server."""
    generation: int = 0
    """Version of the spec, counted by the API server."""
    creation_timestamp: str | None = None
    """When the object was made (RFC 3339)."""
    deletion_timestamp: str | None = None
    """When its deletion was asked for."""


class Resource(Model):
    """Base of our resources."""

    metadata: ObjectMeta
    """Standard object metadata."""

    @classmethod
    def parse(cls, body: Any) -> Self:
        """Return the resource that `body` (decoded YAML or JSON) describes.

        Raises:
            pydantic.ValidationError: if a field is unknown, missing or out of its bounds.
        """
        return cls.model_validate(body, by_alias=True, by_name=False)
