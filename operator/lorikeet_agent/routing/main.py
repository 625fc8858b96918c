"""`lorikeet-agent route`: runs beside Envoy for as long as the pod lives."""

import asyncio
import contextlib
import logging
import os
import signal
import sys

import aiohttp
from aiohttp import web

from lorikeet_agent.routing import endpoint
from lorikeet_agent.routing.drain import Drain
from lorikeet_agent.routing.envoy import Envoy
from lorikeet_agent.routing.leader import Leader
from lorikeet_agent.routing.settings import Settings
from lorikeet_api.contract import EXIT_BAD_REQUEST, EXIT_DONE
from lorikeet_run import log


def main() -> int:
    """Run until SIGTERM and return the exit code (`lorikeet_api.contract.EXIT_*`)."""
    log.set_up()
    try:
        settings = Settings.read(os.environ)
    except ValueError as error:
        log.event("end", logging.ERROR, message=error, exit_code=EXIT_BAD_REQUEST)
        return EXIT_BAD_REQUEST
    return run(settings)


def run(settings: Settings) -> int:
    """Run until SIGTERM and return the exit code."""
    asyncio.run(_until_sigterm(settings))
    return EXIT_DONE


async def serve(settings: Settings, stopped: asyncio.Event) -> None:
    """Lead Envoy and answer for it until `stopped`. Raises OSError where the port is taken."""
    async with aiohttp.ClientSession(trust_env=False) as session:
        envoy = Envoy(session, settings.admin_port)
        leader, drain = Leader(settings, envoy), Drain(settings, envoy)
        runner = web.AppRunner(endpoint.app(leader, drain, settings.drain), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "0.0.0.0", settings.port).start()  # noqa: S104 - of a pod
            await _lead(leader, settings.turn_seconds, stopped)
        finally:
            await runner.cleanup()


async def _lead(leader: Leader, turn_seconds: float, stopped: asyncio.Event) -> None:
    told = ""
    while not stopped.is_set():
        try:
            await leader.turn()
            told = ""
        except OSError as error:  # such as a full disk, or a file that is not mounted yet
            if str(error) != told:
                log.event("cannot_write", logging.ERROR, message=error)
            told = str(error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), turn_seconds)


async def _until_sigterm(settings: Settings) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await serve(settings, stopped)
    log.event("end", message="SIGTERM", exit_code=EXIT_DONE)


if __name__ == "__main__":
    sys.exit(main())
