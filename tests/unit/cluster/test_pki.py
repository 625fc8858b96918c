import ssl
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster import pki
from e2e.cluster.network import Addresses


@pytest.fixture(scope="module")
def pairs() -> dict[str, pki.Pair]:
    return pki.create(Addresses(33, "lk"))


def load(pair: pki.Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.encode())


def test_the_api_servers_certificate_names_every_way_to_reach_it(pairs: dict[str, pki.Pair]) -> None:
    names = load(pairs["apiserver"]).extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    addresses = {"10.201.33.2", "10.203.33.1", "127.0.0.1"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {IPv4Address(a) for a in addresses}
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(
    ("who", "name", "group"),
    [
        ("admin", "lorikeet-admin", "system:masters"),
        ("kubelet", "system:node:lorikeet", "system:nodes"),
        ("scheduler", "system:kube-scheduler", None),
    ],
)
def test_clients_are_who_kubernetes_expects(pairs: dict[str, pki.Pair], who: str, name: str, group: str | None) -> None:
    certificate = load(pairs[who])

    assert [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
    groups = [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    assert groups == ([group] if group else [])
    certificate.verify_directly_issued_by(load(pairs["ca"]))


def test_a_client_cannot_pass_as_a_server(pairs: dict[str, pki.Pair]) -> None:
    usage = load(pairs["admin"]).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value

    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_keys_are_for_their_owners_eyes_only_and_the_authoritys_is_nowhere(
    pairs: dict[str, pki.Pair], tmp_path: Path
) -> None:
    pki.write(pairs, tmp_path / "pki")

    written = {p.name: p for p in (tmp_path / "pki").iterdir()}
    assert "ca.key" not in written
    assert all(p.stat().st_mode & 0o077 == 0 for name, p in written.items() if name.endswith(".key"))
    ssl.create_default_context(cafile=written["ca.crt"]).load_cert_chain(written["admin.crt"], written["admin.key"])
