"""Certificates of one cluster: a certificate authority and one certificate for each who speaks to the API."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.network import Addresses

NODE_NAME = "lorikeet"
_LIFETIME = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    # Kubernetes reads a service account key's public half out of this form, and not out of PKCS 8.
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _name(common_name: str, organization: str | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


class Authority:
    """A certificate authority that lives as long as one ``up``; its key is never written to disk."""

    def __init__(self, now: datetime.datetime | None = None) -> None:
        # An hour back, so that a clock that is set back a little does not make them invalid.
        self._now = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(hours=1)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = _name("lorikeet-ca", None)
        builder = self._builder(self._issuer, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = self._sign(builder)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now)
            .not_valid_after(self._now + _LIFETIME)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> str:
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self,
        common_name: str,
        organization: str | None = None,
        addresses: Sequence[IPv4Address] = (),
        names: Sequence[str] = (),
    ) -> Pair:
        """A certificate for a client; with addresses or names, for a server as well."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = self._builder(_name(common_name, organization), key.public_key())
        if addresses or names:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            builder = builder.add_extension(
                x509.SubjectAlternativeName(
                    [*(x509.IPAddress(a) for a in addresses), *(x509.DNSName(n) for n in names)]
                ),
                critical=False,
            )
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return Pair(self._sign(builder), _pem(key))


def create(addresses: Addresses) -> dict[str, Pair]:
    """Every certificate of a cluster, by whom it is for; ``ca`` has no key, ``sa`` is a signing key."""
    authority = Authority()
    loopback = IPv4Address("127.0.0.1")
    api_names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    api_names.append("kubernetes.default.svc.cluster.local")
    signing_key = ec.generate_private_key(ec.SECP256R1())
    return {
        "ca": Pair(authority.certificate, ""),
        "sa": Pair("", _pem(signing_key)),
        "apiserver": authority.issue(
            "kube-apiserver", addresses=[addresses.node, addresses.api_service, loopback], names=api_names
        ),
        "apiserver-kubelet": authority.issue("kube-apiserver-kubelet-client", "system:masters"),
        "admin": authority.issue("lorikeet-admin", "system:masters"),
        "controller-manager": authority.issue("system:kube-controller-manager"),
        "scheduler": authority.issue("system:kube-scheduler"),
        "proxy": authority.issue("system:kube-proxy"),
        "kubelet": authority.issue(
            f"system:node:{NODE_NAME}", "system:nodes", addresses=[addresses.node], names=[NODE_NAME]
        ),
    }


def write(pairs: dict[str, Pair], folder: Path) -> None:
    """Write every certificate and key as ``<name>.crt`` and ``<name>.key``, keys for root's eyes only."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, pair in pairs.items():
        if pair.certificate:
            (folder / f"{name}.crt").write_text(pair.certificate)
        if pair.key:
            key = folder / f"{name}.key"
            key.touch(mode=0o600)
            key.write_text(pair.key)
