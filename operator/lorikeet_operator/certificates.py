"""Makes the certificate of the progress endpoint: `python -m lorikeet_operator.certificates`, run by the chart's hook.

One Secret holds the certificate authority and a server certificate that it has signed. The server's is made anew at
an upgrade well before it expires; the authority stays for longer, since running jobs know the endpoint by it.
"""

import argparse
import asyncio
import base64
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lorikeet_api.names import FIELD_MANAGER
from lorikeet_operator import logs
from lorikeet_operator.kube import config
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import ApiError, NotFound
from lorikeet_operator.kube.kinds import Key, Kind, Object, uid_of
from lorikeet_operator.kube.throttle import TokenBucket

_log = logging.getLogger(__name__)

SECRET: Final = Kind("", "v1", "secrets", "Secret")
AUTHORITY_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=1095)
RENEWED_BEFORE: Final = timedelta(days=730)
"""What a server's certificate must have left: no upgrade for two years, and it still holds."""
_BACK: Final = timedelta(hours=1)
"""A clock that is a little behind finds them valid, too."""


@dataclass(frozen=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def left(self) -> datetime:
        return self.certificate.not_valid_after_utc


def renew(held: Mapping[str, bytes], names: Sequence[str], now: datetime) -> dict[str, bytes] | None:
    """Return the Secret's new data (`ca.crt`, `ca.key`, `tls.crt`, `tls.key`), or None if what it holds is good.

    An authority that would not outlive a new server's certificate is followed by another one; `ca.crt` then holds
    both. What cannot be read is made anew.
    """
    authority, server = _read(held, "ca"), _read(held, "tls")
    trusted = held.get("ca.crt", b"") if authority is not None else b""
    if authority is None or authority.left < now + SERVER_LIFE:
        authority, server = _authority(now), None
        trusted = _pem(authority.certificate) + trusted
    good = (
        server is not None
        and server.left >= now + RENEWED_BEFORE
        and _names(server.certificate) == sorted(names)
        and server.certificate.issuer == authority.certificate.subject
    )
    if good:
        return None
    server = _server(authority, names, now)
    return {
        "ca.crt": trusted,
        "ca.key": _key_pem(authority.key),
        "tls.crt": _pem(server.certificate),
        "tls.key": _key_pem(server.key),
    }


async def ensure(client: Client, key: Key, names: Sequence[str], now: datetime) -> str:
    """Bring the Secret up to date and return what was done: made, renewed or kept. Raises ApiError."""
    try:
        secret: Object | None = await client.get(SECRET, key)
    except NotFound:
        secret = None
    held = {name: base64.b64decode(value) for name, value in ((secret or {}).get("data") or {}).items()}
    fresh = renew(held, names, now)
    if fresh is None:
        return "kept"
    data = {name: base64.b64encode(value).decode() for name, value in fresh.items()}
    if secret is None:
        metadata = {"name": key.name, "namespace": key.namespace, "labels": {"app.kubernetes.io/part-of": "lorikeet"}}
        await client.create(SECRET, {"metadata": metadata, "data": data})
        return "made"
    await client.patch(SECRET, key, {"data": data}, uid_of(secret))
    return "renewed"


def _read(held: Mapping[str, bytes], name: str) -> _Pair | None:
    try:
        certificate = x509.load_pem_x509_certificate(held[f"{name}.crt"])
        key = serialization.load_pem_private_key(held[f"{name}.key"], None)
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return _Pair(certificate, key)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return sorted(found.value.get_values_for_type(x509.DNSName))


def _authority(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # By its time: one that follows another must not be taken for it.
    name = _common_name(f"lorikeet-progress-{now:%Y%m%d%H%M%S}")
    builder = _builder(name, name, key, now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    usages = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage)
    return _Pair(builder.add_extension(usages, critical=True).sign(key, hashes.SHA256()), key)


def _server(authority: _Pair, names: Sequence[str], now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_common_name("lorikeet-progress"), authority.certificate.subject, key, now, SERVER_LIFE)
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    for extension in (alternatives, issuer, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])):
        builder = builder.add_extension(extension, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return _Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + life)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


async def _run(key: Key, names: Sequence[str]) -> None:
    async with Client(await config.load(), FIELD_MANAGER, TokenBucket(10, 10)) as client:
        done = await ensure(client, key, names, datetime.now(UTC))
    _log.info("the certificate in Secret %s for %s was %s", key, ", ".join(names), done)


def main() -> int:
    """Bring the Secret up to date. Return 1 if the API server does not let us."""
    parser = argparse.ArgumentParser(description="Makes or renews the certificate of the progress endpoint.")
    parser.add_argument("--namespace", required=True, help="namespace of the Secret")
    parser.add_argument("--secret", required=True, help="name of the Secret")
    parser.add_argument("--host", required=True, action="append", help="name of the endpoint; may be repeated")
    given = parser.parse_args()
    logs.set_up("INFO")
    try:
        asyncio.run(_run(Key(given.namespace, given.secret), given.host))
    except ApiError as error:
        _log.critical("the certificate could not be made: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
