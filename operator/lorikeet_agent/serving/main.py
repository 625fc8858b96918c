"""`lorikeet-agent serve`: runs beside an engine for as long as the pod lives."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import aiohttp
from aiohttp import web

from lorikeet_agent.serving import server
from lorikeet_agent.serving.contracts import read
from lorikeet_agent.serving.drain import Drain
from lorikeet_agent.serving.engine_http import EngineHttp
from lorikeet_agent.serving.holder import Holder
from lorikeet_agent.serving.settings import Settings
from lorikeet_api.contract import EXIT_DONE
from lorikeet_api.serving import EngineContract
from lorikeet_engines import ENGINES
from lorikeet_run import log
from lorikeet_run.errors import RunError


def main(contract: Path) -> int:
    """Run until SIGTERM, which ends the process. Returns the exit code if there is nothing to run by."""
    try:
        settings = Settings.of(read(contract, EngineContract))
    except RunError as error:
        log.event("end", logging.ERROR, message=error.message, exit_code=error.exit_code)
        return error.exit_code
    return run(settings)


def run(settings: Settings) -> int:
    """Run until SIGTERM, which ends the process."""
    asyncio.run(_until_sigterm(settings))
    return EXIT_DONE


async def serve(settings: Settings, stopped: asyncio.Event) -> None:
    """Hold what is wanted and answer for it until `stopped`. Raises OSError where the port is taken."""
    engine, contract = ENGINES[settings.contract.engine], settings.contract
    async with aiohttp.ClientSession(trust_env=False) as session:
        http = EngineHttp(session, contract.engine_port)
        holder = Holder(settings, engine, http)
        drain = Drain(settings, engine, http, holder.engine)
        app = server.app(holder, drain, engine, http, contract.drain)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "0.0.0.0", settings.port).start()  # noqa: S104 - of a pod
            await _until(stopped, asyncio.create_task(holder.run()))
        finally:
            await runner.cleanup()


async def _until(stopped: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Wait for `stopped`, or for the end of `work`, which is none that was meant: it is raised."""
    waiting = asyncio.create_task(stopped.wait())
    try:
        done, _ = await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            work.result()
    finally:
        for task in (work, waiting):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _until_sigterm(settings: Settings) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await serve(settings, stopped)
    log.event("end", message="SIGTERM", exit_code=EXIT_DONE)
    sys.stdout.flush()
    # Threads that wait for a store would hold up the end for minutes, and leave nothing half that counts.
    os._exit(EXIT_DONE)
