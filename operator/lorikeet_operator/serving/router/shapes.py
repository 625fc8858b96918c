"""Pieces of Envoy's API that several of the files have."""

from typing import Any, Final

TYPE: Final = "type.googleapis.com/envoy"
"""What the names of Envoy's types begin with."""
LUA: Final = "lorikeet"
"""Name of the script's filter; its metadata lie under it."""


def address(host: str, port: int) -> dict[str, Any]:
    """Return an address."""
    return {"socket_address": {"address": host, "port_value": port}}


def watched(folder: str, name: str) -> dict[str, Any]:
    """Return a file that is read again when it is exchanged."""
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": f"{folder}/{name}", "watched_directory": {"path": folder}},
    }


def http_filter(name: str, kind: str, **configuration: Any) -> dict[str, Any]:
    """Return one of the filters that a request passes."""
    return {"name": name, "typed_config": {"@type": f"{TYPE}.extensions.filters.http.{kind}", **configuration}}


def said(key: str) -> str:
    """Return the format of what the script has said of a request; empty where it has said nothing."""
    return f"%DYNAMIC_METADATA({LUA}:{key})%"


def where(expression: str) -> dict[str, Any]:
    """Return the filter of requests of which a CEL expression over Envoy's attributes is true."""
    kind = f"{TYPE}.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    configuration = {"@type": kind, "expression": expression}
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": configuration}}
