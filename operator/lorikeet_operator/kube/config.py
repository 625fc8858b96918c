"""How to reach the API server: as a pod's service account, else by kubeconfig."""

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import kopf
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, load_incluster_config


async def load() -> Configuration:
    """Return the configuration: of the pod that we run in, else of `KUBECONFIG` or ~/.kube/config."""
    configuration = Configuration()
    if "KUBECONFIG" not in os.environ and SERVICE_HOST_ENV_NAME in os.environ:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration, persist_config=False
        )
    if configuration.proxy is None:
        configuration.proxy = _proxy(configuration.host)
    # aiohttp would look for a netrc file and a proxy in threads before each request: a fifth of the operator's time.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (HTTPS_PROXY, NO_PROXY and so on)."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return the same for kopf, with the token as it is now: kopf asks again when the server refuses it."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, token = (header or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        trust_env=True,
    )
