"""What it takes to make a run again, as YAML."""

from io import StringIO
from typing import Any, Final
from urllib.parse import urlsplit

from ruamel.yaml import YAML

from lorikeet_api.contract import RunContract
from lorikeet_api.names import API_VERSION

_LONGEST_LINE: Final = 4096


def manifest(contract: RunContract) -> str | None:
    """Return the FineTuneJob that asks for the very same run, whatever the profile's defaults are.

    None where the run went on from an earlier job's adapter: only that job can be named, which the contract does not.
    """
    if contract.start is not None:
        return None
    asked = contract.to_wire()
    spec = {name: asked[name] for name in ("model", "dataset", "method", "objective", "training")}
    spec |= {"compute": {"gpus": contract.gpus}, "output": {"uri": contract.output_uri}}
    metadata = {"name": contract.name, "namespace": contract.namespace}
    return _yaml({"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec})


def configuration(contract: RunContract) -> str:
    """Return the whole contract, without what an endpoint's URL may say of a user."""
    shown = contract.to_wire()
    endpoint = contract.storage.endpoint
    if endpoint is not None and "@" in endpoint:
        parts = urlsplit(endpoint)
        shown["storage"]["endpoint"] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return _yaml(shown)


def _yaml(value: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = _LONGEST_LINE
    out = StringIO()
    yaml.dump(value, out)
    return out.getvalue()
