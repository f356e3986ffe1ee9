"""A server without models, small limits and no socket, and requests to it."""

from __future__ import annotations

import asyncio
from functools import partial

import httpx

from gencli.checkpoints.find import find
from gencli.serve.app import Server
from gencli.serve.guard import Limits
from gencli.serve.pool import Pool
from gencli.spec import ModelSpec


def make_server() -> Server:
    pool = Pool({}, ModelSpec(), partial(find, offline=True), keep=60, memory=2**30, pull=False)
    return Server(pool, Limits(queue=2, body=1000, seconds=0.2))


def post(server: Server, url: str = "http://localhost", path: str = "/v1/completions", **request) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(server.app())
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            return await client.post(path, **request)

    return asyncio.run(ask())
