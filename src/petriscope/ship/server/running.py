"""Runs the server until it is told to stop, and then until every accepted request is answered."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from types import FrameType
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from petriscope.core.errors import PetriscopeError
from petriscope.ship.server.gate import Gate
from petriscope.ship.server.log_lines import Lines, log

LINGER = 0.5  # seconds in which a stopping server still takes connections, and as many for what comes over those it has
KEEP_ALIVE = 15  # seconds that a connection may be idle
CONNECTIONS = 512  # that are open at one time
HEADER_BYTES = 1 << 15


def run(gate: Gate, host: str, port: int) -> None:
    """Serve on an address until SIGTERM or SIGINT.

    Raises:
        PetriscopeError: the address cannot be used.
    """
    listening = _listen(host, port)
    _log_as_lines()
    config = uvicorn.Config(
        gate,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        lifespan="on",
        http=Connection,  # by h11, whose headers are bounded; those of httptools are not
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(gate.limits.deadline) + 1,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    shown = f"[{host}]" if ":" in host else host
    log("listening", url=f"http://{shown}:{listening.getsockname()[1]}/")
    gc.freeze()  # models and libraries stay to the end; or else requests would wait while all of that is searched for garbage
    Server(config, gate).run(sockets=[listening])
    log("stopped")


class Connection(H11Protocol):
    """Is closed where the head of a request does not arrive within `KEEP_ALIVE`: the first one, too, and one that trickles."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > CONNECTIONS:
            self.transport.abort()
            return
        self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.waiting is not None:
            self.waiting.cancel()

    def _wait_for_head(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        self.waiting = self.loop.call_later(KEEP_ALIVE, self._close_without, self.cycle)

    def _close_without(self, last: object) -> None:
        if self.cycle is last:
            self.transport.close()


class Server(uvicorn.Server):
    """Refuses new requests when it is told to stop, and ends when those that were accepted are answered."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate
        self.told = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.stopping:  # a second time: at once
            self.should_exit = self.force_exit = True
        self.gate.stopping, self.told = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        if self.gate.stopping and not self.gate.active:
            since = time.monotonic() - self.told
            if since > LINGER:
                for each in self.servers:
                    each.close()
            if since > 2 * LINGER or (since > LINGER and not self.server_state.connections):
                self.should_exit = True
        return await super().on_tick(counter)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=1024)
    except OSError as error:
        raise PetriscopeError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another with --port or --host"
        ) from None


def _log_as_lines() -> None:
    """Write what any library logs as lines of JSON."""
    logging.getLogger().handlers = [Lines()]
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
