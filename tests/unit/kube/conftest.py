from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from lorikeet_operator.kube.client import Client
from tests.unit.kube.api import Api, client_for, serve
from tests.unit.kube.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def server(api: Api) -> AsyncIterator[TestServer]:
    server = await serve(api)
    yield server
    await server.close()


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with client_for(server) as client:
        yield client
