"""HTTP servers of the operator, and the certificate of those that speak TLS."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web
from cryptography import x509

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 30.0
_IDLE_SECONDS: Final = 15.0
"""How long a connection stays open that nothing is asked on."""
_AUTHORITIES_BYTES: Final = 32 * 1024
"""An annotation holds them, and all annotations of a pod together have 256 KiB."""
_ENDING_SECONDS: Final = 3.0
"""How long requests may take to end at a shutdown."""


async def serve(app: web.Application, host: str, port: int, context: ssl.SSLContext | None = None) -> web.AppRunner:
    """Begin to answer on a port; the caller cleans the runner up."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=_IDLE_SECONDS, shutdown_timeout=_ENDING_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, host or None, port, ssl_context=context).start()
    return runner


class Certificate:
    """A certificate in a folder, as a Secret's volume has it: `tls.crt`, `tls.key` and `ca.crt`, which may change."""

    def __init__(self, folder: Path) -> None:
        """Load it. Raises OSError (ssl.SSLError too) or ValueError."""
        self._folder = folder
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded: list[bytes] = []
        self.authorities = ""
        """The certificate authorities by which clients know it, as PEM."""
        self.expires = datetime.max.replace(tzinfo=UTC)
        self.load()

    def load(self) -> bool:
        """Load what is in the folder now, and return whether it is news; open connections go on as they are."""
        found = [(self._folder / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt")]
        if found == self._loaded:
            return False
        if len(found[2]) > _AUTHORITIES_BYTES:
            raise ValueError(
                f"{self._folder / 'ca.crt'} has {len(found[2])} bytes, and each job gets a copy: have no more than the"
                f" authority of tls.crt in it, {_AUTHORITIES_BYTES} bytes at most"
            )
        expires = x509.load_pem_x509_certificate(found[0]).not_valid_after_utc
        # A pair that does not match would spoil the context it is loaded into.
        for context in (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), self.context):
            context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
        self._loaded, self.authorities, self.expires = found, found[2].decode(), expires
        return True

    async def keep(self) -> None:
        """Load each new one, for ever: whoever renews it tells nobody."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if self.load():
                    _log.info("the certificate in %s was renewed: it expires at %s", self._folder, self.expires)
            except (OSError, ValueError) as error:
                _log.error("the certificate in %s cannot be loaded, the last one stays: %s", self._folder, error)
