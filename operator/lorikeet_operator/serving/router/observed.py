"""What is told of each request: metrics by model, variant and revision, and the access log."""

from typing import Any, Final

from lorikeet_operator.serving.router.shapes import LUA, TYPE, said, where

_STATS: Final = "lorikeet"
"""What the names of our metrics begin with, after Envoy's own prefix."""
_MILLISECONDS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
BUCKETS: Final = [{"match": {"prefix": f"{_STATS}."}, "buckets": list(_MILLISECONDS)}]
"""Upper ends of the buckets of our histograms."""
_FIRST_BYTE: Final = "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:ms)%"
"""From the first byte of the request to the first byte of the answer's body."""
_FLAGS: Final = "%RESPONSE_FLAGS%"
"""Why Envoy has answered by itself, or has ended an answer: `UH` no replica, `UC` the engine has hung up, `DC` the
client has, … (Envoy's documentation of access logs has all). `-`: it has not, a failure is the engine's own."""


def metrics() -> list[dict[str, Any]]:
    """Return the loggers that count; the labels are empty where a request was not led."""
    labels = [{"name": name, "value_format": said(name)} for name in ("model", "variant", "revision")]
    how = [{"name": "status", "value_format": "%RESPONSE_CODE%"}, {"name": "flags", "value_format": _FLAGS}]

    def histogram(name: str, value: str) -> dict[str, Any]:
        return {"stat": {"name": name, "tags": labels}, "unit": "Milliseconds", "value_format": value}

    every = _counting(
        counters=[{"stat": {"name": "requests", "tags": [*labels, *how]}, "value_fixed": 1}],
        histograms=[histogram("request_ms", "%DURATION%")],
    )
    # Where there is no such number, Envoy would log an error each time.
    answered = {"and_filter": {"filters": [_has("variant"), where("response.code < 500 && response.size > 0")]}}
    timed = _counting(histograms=[histogram("first_byte_ms", _FIRST_BYTE)])
    spent = _counting(
        counters=[
            {"stat": {"name": name, "tags": labels}, "value_format": said(name)}
            for name in ("prompt_tokens", "completion_tokens")
        ]
    )
    return [
        every,
        timed | {"filter": answered},
        spent | {"filter": _has("prompt_tokens")},
    ]


def access_log() -> dict[str, Any]:
    """Return the access log: one JSON object a request on standard output, nothing of its query and its body."""
    fields = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "path": "%PATH(NQ:PATH)%",
        **{name: said(name) for name in ("model", "variant", "revision")},
        "status": "%RESPONSE_CODE%",
        "flags": _FLAGS,
        "ms": "%DURATION%",
        "first_byte_ms": _FIRST_BYTE,
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
    }
    configuration = {
        "@type": f"{TYPE}.extensions.access_loggers.stream.v3.StdoutAccessLog",
        "log_format": {"json_format": fields},
    }
    return {"name": "envoy.access_loggers.stdout", "typed_config": configuration}


def _counting(**counted: Any) -> dict[str, Any]:
    kind = f"{TYPE}.extensions.access_loggers.stats.v3.Config"
    configuration = {"@type": kind, "stats_scope": {"prefix": _STATS}, **counted}
    return {"name": "envoy.access_loggers.stats", "typed_config": configuration}


def _has(key: str) -> dict[str, Any]:
    """Return the filter of requests of which the script has said this."""
    matcher = {"filter": LUA, "path": [{"key": key}], "value": {"present_match": True}}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}
