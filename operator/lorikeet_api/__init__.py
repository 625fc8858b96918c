"""The resources of lorikeet.dev as pydantic models, and what operator and trainer agree on."""
