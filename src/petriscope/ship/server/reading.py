"""Reads the images of a request while they arrive, so that no more is held in memory than `Limits` allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from petriscope.ship.server.limits import Limits, Refusal, mib

FORM = "multipart/form-data"
ONE_IMAGE = ("image/", "application/octet-stream")
FIELD_BYTES = 1024  # of a value in a form that is no file
FIELDS = 16
NAME_BYTES = 1024  # of a file name
TAKES = (
    "send images as multipart/form-data, such as curl -F file=@cell.png, or one image as its bytes with a content type such as "
    "image/png"
)


@dataclass(frozen=True)
class Upload:
    """An image file of a request."""

    name: str
    content: bytes


@dataclass
class Held:
    """Bytes of the requests that are being worked on."""

    most: int
    bytes: int = 0

    def add(self, count: int) -> None:
        if self.bytes + count > self.most:
            raise Refusal(
                503,
                f"the server holds as many images of other requests as it may ({mib(self.most)}); try again later",
                "held_bytes",
                retry_after=1,
            )
        self.bytes += count


@dataclass
class Body:
    """What a request brought.

    Args:
        files: its image files.
        fields: name and value of what its form has that are no files.
        size: bytes that were read.
        held: what the request holds of `Held`; it is given back by `close`.
    """

    held: Held
    files: list[Upload] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)
    size: int = 0
    kept: int = 0

    def keep(self, count: int) -> None:
        self.held.add(count)
        self.kept += count

    def close(self) -> None:
        """Forget the files."""
        self.held.bytes -= self.kept
        self.kept = 0
        self.files = []


async def read_body(request: Request, body: Body, limits: Limits) -> None:
    """Read a request into ``body``.

    Raises:
        Refusal: it is of another content type (415), damaged (422), too large (413), or too slow (408).
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    content_type = kind.decode("latin-1").lower()
    announced = _announced(request, limits)
    parse: Callable[[bytes], None]
    if content_type == FORM:
        form = _Form(options.get(b"boundary"), body, limits)
        parse, finish = form.write, form.finish
    elif content_type.startswith(ONE_IMAGE):
        single = _Single(body, limits)
        parse, finish = single.write, single.finish
    else:
        raise Refusal(415, f"the content type is {_quoted(content_type) if content_type else 'missing'}; {TAKES}")
    if announced > limits.body_bytes:
        raise _too_large(limits)
    async with asyncio.timeout(limits.deadline):
        async for chunk in request.stream():
            body.size += len(chunk)
            if body.size > limits.body_bytes:
                raise _too_large(limits)
            parse(chunk)
    finish()
    if not body.files:
        raise Refusal(422, f"there is no image in the request; {TAKES}")


async def client_left(request: Request) -> None:
    """Wait until the client of a request whose body was read has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def drain(request: Request, most: int) -> bool:
    """Take the rest of the body of a request that is refused and throw it away, so that its client gets to read why. Returns
    whether its end was reached."""
    if request.headers.get("expect", "").lower() == "100-continue":
        return False  # the client has not begun to send it
    size = 0
    try:
        async with asyncio.timeout(5):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    return False
    except (TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: the stream was read to its end before
        return False
    return True


def _announced(request: Request, limits: Limits) -> int:
    """The length of the body by its header; 0 if there is none."""
    text = request.headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise Refusal(422, "the header Content-Length is no number")
    return int(text[:20])


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413, f"the request is larger than {mib(limits.body_bytes)}; send fewer images at a time", "body_bytes"
    )


class _Single:
    """A body that is one image."""

    def __init__(self, body: Body, limits: Limits) -> None:
        self.body, self.limits = body, limits
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if self.body.size > self.limits.file_bytes:
            raise _file_too_large(self.limits)
        self.body.keep(len(data))
        self.parts.append(data)

    def finish(self) -> None:
        if self.body.size:
            self.body.files.append(Upload("image", b"".join(self.parts)))


class _Form:
    """A body that is a form with files.

    Raises:
        Refusal: it is damaged, or has too many or too large files.
    """

    def __init__(self, boundary: bytes | None, body: Body, limits: Limits) -> None:
        self.body, self.limits = body, limits
        self.parts: list[bytes] = []  # of the file or value that is being read
        self.size = 0
        self.ended = False
        self.headers: dict[bytes, bytes] = {}
        self.header, self.value = b"", b""
        self.name, self.file = "", False
        callbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._all,
        }
        if not boundary:
            raise Refusal(422, "the content type multipart/form-data has no boundary")
        try:
            self.parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise _damaged(error) from None

    def write(self, data: bytes) -> None:
        try:
            self.parser.write(data)
        except FormParserError as error:
            raise _damaged(error) from None

    def finish(self) -> None:
        try:
            self.parser.finalize()
        except FormParserError as error:
            raise _damaged(error) from None
        if not self.ended:
            raise Refusal(422, "the form is cut off before its end")

    def _begin(self) -> None:
        self.headers, self.parts, self.size, self.file, self.name = {}, [], 0, False, ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header_end(self) -> None:
        self.headers[self.header.lower()] = self.value
        self.header, self.value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        self.file = b"filename" in options
        name = options.get(b"filename" if self.file else b"name", b"")
        self.name = name[:NAME_BYTES].decode("utf-8", "replace")
        if self.file and len(self.body.files) >= self.limits.files:
            raise Refusal(413, f"a request may have {self.limits.files:,} images; send fewer at a time", "files")
        if not self.file and len(self.body.fields) >= FIELDS:
            raise Refusal(422, f"the form has more than {FIELDS} values that are no files")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.size += end - start
        if self.file and self.size > self.limits.file_bytes:
            raise _file_too_large(self.limits)
        if not self.file and self.size > FIELD_BYTES:
            raise Refusal(422, f"a value of the form has more than {FIELD_BYTES:,} bytes")
        self.body.keep(end - start)
        self.parts.append(data[start:end])

    def _end(self) -> None:
        content = b"".join(self.parts)
        if self.file:
            self.body.files.append(Upload(self.name or "image", content))
        else:
            self.body.fields.append((self.name, content.decode("utf-8", "replace")))
        self.parts = []

    def _all(self) -> None:
        self.ended = True


def _file_too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"an image file is larger than {mib(limits.file_bytes)}", "file_bytes")


def _damaged(error: FormParserError) -> Refusal:
    return Refusal(422, f"the form cannot be read: {str(error)[:120]}")


def _quoted(text: str) -> str:
    return repr(text[:60])
