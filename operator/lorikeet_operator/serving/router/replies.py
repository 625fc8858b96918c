"""What Envoy answers by itself, in OpenAI's shape. What the script answers has it already, under other statuses."""

from typing import Any, Final

from lorikeet_operator.serving.router.shapes import where

_OVERLOADED: Final = where("response.code_details == 'overload'")


def _is(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"lorikeet.status.{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _reply(when: dict[str, Any], message: str, kind: str, code: str) -> dict[str, Any]:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"filter": when, "body_format_override": {"json_format": {"error": error}}}


def _refused(status: int, message: str, code: str) -> dict[str, Any]:
    return _reply(_is(status), message, "invalid_request_error", code)


def _failed(status: int, message: str, code: str) -> dict[str, Any]:
    return _reply(_is(status), message, "server_error", code)


def _unavailable(when: dict[str, Any], message: str, code: str) -> dict[str, Any]:
    retry = {"headers_to_add": [{"header": {"key": "retry-after", "value": "5"}}]}
    return _reply(when, message, "service_unavailable_error", code) | retry


LOCAL_REPLIES: Final = {
    "mappers": [
        _refused(403, "this cannot be asked for here", "forbidden"),
        _refused(408, "the request did not arrive in time", "request_timeout"),
        _refused(413, "the body is larger than this router takes", "body_too_large"),
        _refused(426, "ask by HTTP/1.1", "upgrade_required"),
        _refused(431, "the headers are too large", "headers_too_large"),
        _failed(500, "the router could not lead the request anywhere", "not_led"),
        _failed(502, "the engine has answered nothing that is HTTP", "bad_gateway"),
        _unavailable(_OVERLOADED, "the router has no memory left: try again", "overloaded"),
        _unavailable(_is(503), "no replica can answer for this variant now: try again", "unavailable"),
        _failed(504, "the engine has not answered in time", "timeout"),
    ]
}
"""The first that fits counts."""
