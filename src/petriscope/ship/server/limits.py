"""What one client may ask of the server, and how a request is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields

from petriscope.core.errors import RequestError

MOST = {"batch": 4096, "queue": 1_000_000, "files": 100_000, "requests": 100_000, "deadline": 86_400, "wait": 60}


@dataclass(frozen=True)
class Limits:
    """Bounds of what is accepted and held in memory.

    Args:
        file_bytes: bytes of one image file.
        files: image files of one request.
        body_bytes: bytes of the body of one request.
        pixels: of one image.
        held_bytes: bytes of the bodies of all requests at one time.
        requests: requests that are worked on at one time.
        queue: images per model that are accepted and not yet answered.
        batch: images that a model predicts at a time.
        wait: seconds that a batch waits for images that are still being decoded.
        deadline: seconds that a request may take, from its first byte to its answer.

    Raises:
        RequestError: one is not more than 0, or is larger than `MOST` allows.
    """

    file_bytes: int = 32 << 20
    files: int = 64
    body_bytes: int = 128 << 20
    pixels: int = 64_000_000
    held_bytes: int = 512 << 20
    requests: int = 256
    queue: int = 512
    batch: int = 32
    wait: float = 0.004
    deadline: float = 30.0

    def __post_init__(self) -> None:
        for name, value in ((each.name, getattr(self, each.name)) for each in fields(self)):
            if not 0 < value <= (most := MOST.get(name, 1 << 40)):
                raise RequestError(f"the server's limit {name} must be more than 0 and at most {most:,}; got {value:,}")


class Refusal(Exception):
    """A request is refused.

    Args:
        status: of the response.
        sentence: what is wrong, and what to do.
        limit: the field of `Limits` that the request went beyond; an empty string: none.
        retry_after: seconds after which the same request may be accepted; None: it will not be.
    """

    def __init__(self, status: int, sentence: str, limit: str = "", retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.limit, self.retry_after = status, sentence, limit, retry_after
        self.ended = True  # the body was read to its end, so that the connection can be used again


def mib(size: int) -> str:
    """A number of bytes for people, such as ``32 MiB``."""
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size:,} bytes"
