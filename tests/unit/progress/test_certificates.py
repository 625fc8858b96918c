"""The certificate of the progress endpoint: made once, renewed in time, and trusted by who knows the authority."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from lorikeet_operator.certificates import AUTHORITY_LIFE, RENEWED_BEFORE, SECRET, SERVER_LIFE, ensure, renew
from lorikeet_operator.kube.kinds import Key
from lorikeet_operator.kube.serve import Certificate, serve
from tests.unit.kube.api import Api, client_for
from tests.unit.kube.api import serve as serve_api
from tests.unit.kube.waiting import until

NAMES = ["localhost", "endpoint.ns.svc"]
NOW = datetime.now(UTC)


def made(now: datetime = NOW) -> dict[str, bytes]:
    data = renew({}, NAMES, now)
    assert data is not None
    return data


def certificate(data: dict[str, bytes]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(data["tls.crt"])


def test_a_good_one_is_kept() -> None:
    data = made()
    assert renew(data, NAMES, NOW) is None
    assert renew(data, NAMES, NOW + SERVER_LIFE - RENEWED_BEFORE - timedelta(days=1)) is None


def test_the_servers_is_renewed_before_it_expires_and_the_authority_stays() -> None:
    before = made()
    after = renew(before, NAMES, NOW + SERVER_LIFE - RENEWED_BEFORE + timedelta(days=1))
    assert after is not None
    assert after["ca.crt"] == before["ca.crt"]
    assert certificate(after).not_valid_after_utc > certificate(before).not_valid_after_utc


def test_an_authority_at_its_end_is_followed_by_another_and_both_are_trusted() -> None:
    before = made()
    after = renew(before, NAMES, NOW + AUTHORITY_LIFE - SERVER_LIFE + timedelta(days=1))
    assert after is not None
    new, old = x509.load_pem_x509_certificates(after["ca.crt"])
    assert old == x509.load_pem_x509_certificate(before["ca.crt"])
    certificate(after).verify_directly_issued_by(new)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt", "ca.key"])
def test_what_cannot_be_read_is_made_anew(name: str) -> None:
    data = renew({**made(), name: b"nothing"}, NAMES, NOW)
    assert data is not None
    assert renew(data, NAMES, NOW) is None


def test_another_name_needs_another_certificate_of_the_same_authority() -> None:
    before = made()
    after = renew(before, ["elsewhere"], NOW)
    assert after is not None
    assert after["ca.crt"] == before["ca.crt"]


async def test_the_secret_is_made_kept_and_renewed() -> None:
    api = Api(kinds=(SECRET,))
    server = await serve_api(api)
    key = Key("ns", "progress")
    async with client_for(server) as client:
        assert await ensure(client, key, NAMES, NOW) == "made"
        assert await ensure(client, key, NAMES, NOW) == "kept"
        assert await ensure(client, key, NAMES, NOW + SERVER_LIFE) == "renewed"
    await server.close()
    assert [seen.method for seen in api.writes] == ["POST", "PATCH"]


def write(data: dict[str, bytes], folder: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (folder / name).write_bytes(data[name])


async def test_who_knows_the_authority_trusts_a_renewed_certificate_without_a_restart(tmp_path: Path) -> None:
    data = made(NOW - timedelta(days=500))
    write(data, tmp_path)
    held = Certificate(tmp_path)
    trust = ssl.create_default_context(cadata=held.authorities)
    runner = await serve(web.Application(), "127.0.0.1", 0, held.context)
    port = runner.addresses[0][1]

    async def shown() -> bytes:
        # A connection of its own: one that is open goes on with what it has.
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
        writer.close()
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown

    try:
        before = await shown()
        renewed = renew(data, NAMES, NOW)
        assert renewed is not None
        write(renewed, tmp_path)
        assert held.load()
        assert not held.load()
        assert await shown() != before
        write(made(), tmp_path)
        held.load()
        with pytest.raises(ssl.SSLCertVerificationError):
            await shown()
    finally:
        await runner.cleanup()


async def test_a_key_of_another_certificate_leaves_the_last_pair_at_work(tmp_path: Path) -> None:
    data = made()
    write(data, tmp_path)
    held = Certificate(tmp_path)
    trust = ssl.create_default_context(cadata=held.authorities)
    runner = await serve(web.Application(), "127.0.0.1", 0, held.context)
    try:
        write({**made(), "tls.key": data["tls.key"]}, tmp_path)
        with pytest.raises(ssl.SSLError):
            held.load()
        port = runner.addresses[0][1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
        writer.close()
    finally:
        await runner.cleanup()


def test_a_bundle_of_all_the_worlds_authorities_is_refused(tmp_path: Path) -> None:
    write({**made(), "ca.crt": b"#" * 200_000}, tmp_path)
    with pytest.raises(ValueError, match=r"has 200000 bytes, and each job gets a copy"):
        Certificate(tmp_path)


async def test_one_that_cannot_be_loaded_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lorikeet_operator.kube.serve._LOOK_SECONDS", 0.01)
    write(made(), tmp_path)
    held = Certificate(tmp_path)
    (tmp_path / "tls.crt").write_text("nothing")
    task = asyncio.create_task(held.keep())
    await until(lambda: "cannot be loaded" in caplog.text, "a word about it")
    task.cancel()
    assert "BEGIN CERTIFICATE" in held.authorities
