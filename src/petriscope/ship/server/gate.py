"""What every request passes: whether the server is stopping or too busy, whether the token is right, its line in the log."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from petriscope.core.files import json_text
from petriscope.ship.server.counters import Counters
from petriscope.ship.server.lane import Lane
from petriscope.ship.server.limits import Limits, Refusal
from petriscope.ship.server.log_lines import log, log_error
from petriscope.ship.server.reading import drain

FACTS = "petriscope"  # where a request's `Facts` are in its scope
OPEN = ("/", "/docs", "/health/live", "/health/ready")  # without a token: nothing about models or images
FAILED = "the server failed; its log says where"
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


@dataclass
class Facts:
    """What the log says of a request."""

    model: str = ""
    images: int = 0
    bytes: int = 0


class Gate:
    """The application, behind what every request passes.

    Args:
        paths: those that the application has; others are not named in the log.
        direct: what answers a method and a path without the layers of the application, which take longer than a small image.
        token: that requests must carry; an empty string: none.
        lanes: the models by name.
        local: refuse requests that were sent to the name of another machine. A page of another site can let its name lead
            here, and would read the answers as its own.

    Attributes:
        stopping: new requests are refused.
        active: requests that were accepted and are not answered yet.
    """

    def __init__(
        self,
        app: FastAPI,
        paths: frozenset[str],
        direct: Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]],
        counters: Counters,
        limits: Limits,
        token: str,
        lanes: Mapping[str, Lane],
        local: bool = False,
    ) -> None:
        self.app, self.paths, self.direct = app, paths, direct
        self.counters, self.limits, self.lanes = counters, limits, lanes
        self.token = f"Bearer {token}".encode() if token else b""
        self.local = local
        self.stopping = False
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        facts = scope[FACTS] = Facts()
        head = scope["method"] == "HEAD"
        asked = {**scope, "method": "GET"} if head else scope  # the same answer, without its body

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.stopping:  # the client is not to send more on this connection
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send({**message, "body": b""} if head and "body" in message else message)

        self.active += 1
        try:
            self._check(scope)
            await self._pass(asked, receive, answer)
        except Refusal as refusal:
            if self.stopping:  # what is closed before its body was read may be reset before its answer is read
                await drain(Request(scope, receive), self.limits.body_bytes)
            await refused(refusal)(scope, receive, answer)
        except Exception as error:
            log_error("answering", error)
            if not status:
                await refused(Refusal(500, FAILED))(scope, receive, answer)
        finally:
            self.active -= 1
            self._tell(scope, facts, status, time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        act = self.direct.get((scope["method"], scope["path"]))
        if act is None:
            await self.app(scope, receive, send)
            return
        try:
            response = await act(Request(scope, receive))
        except Refusal as refusal:
            response = on_refusal(refusal)
        except ClientDisconnect:
            response = on_disconnect()
        await response(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if scope["path"] == "/health/live":
            return
        if self.stopping:
            raise Refusal(503, "the server is stopping; send the request to another one, or try again later")
        if self.active > self.limits.requests:
            raise Refusal(
                503,
                f"the server works on {self.limits.requests:,} requests at a time; try again later",
                "requests",
                retry_after=1,
            )
        if self.local and not _names_this_machine(_header(scope, b"host")):
            raise Refusal(
                403,
                "this server answers requests to localhost alone, and this one was sent to another name; with --token TOKEN it "
                "answers to any",
            )
        guarded = self.token and scope["path"] not in OPEN
        if guarded and not hmac.compare_digest(_header(scope, b"authorization"), self.token):
            raise Refusal(401, "this server needs a token: send the header Authorization: Bearer TOKEN")

    def _tell(self, scope: Scope, facts: Facts, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.counters.request(path, status, seconds)
        log(
            "request",
            method=scope["method"][:10],
            path=path,
            status=status,
            ms=round(1000 * seconds, 1),
            bytes=facts.bytes,
            model=facts.model,
            images=facts.images,
        )


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _names_this_machine(host: bytes) -> bool:
    """Whether a header Host is localhost or an address, which no other site can have; or empty, as in HTTP/1.0."""
    name = host.decode("latin-1").strip().lower()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0].rstrip(".")
    if not name or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def refused(refusal: Refusal, more: Mapping[str, object] | None = None, close: bool = False) -> Response:
    """The response for a refusal: a JSON object with the sentence as ``error``, and ``limit``, if there is one."""
    content = {"error": refusal.sentence, **({"limit": refusal.limit} if refusal.limit else {}), **(more or {})}
    headers = dict(HEADERS)
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if close:
        headers["Connection"] = "close"
    return Response(json_text(content), refusal.status, headers, "application/json")


def on_refusal(refusal: Refusal) -> Response:
    """The response where a request is refused after it was begun to be read."""
    return refused(refusal, close=not refusal.ended)


def on_disconnect() -> Response:
    """The response where the client has left. Nobody reads it; the log has the status."""
    return refused(Refusal(499, "the client left"))
