"""The log: one JSON object per line on stderr. It has neither the content nor the names of images."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_lock = threading.Lock()


def log(event: str, **facts: Any) -> None:
    """Write a line. If the stream is closed, the line is dropped and work continues."""
    now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **facts}, default=str)
    with _lock, suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def log_error(doing: str, error: BaseException) -> None:
    """Write a line with the type of an unexpected error and where it was raised. Its text, which may name a file, is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename.rpartition('petriscope/')[2]}:{frame.lineno}" for frame in frames[-4:]]
    log("error", doing=doing, error=type(error).__name__, where=where)


class Lines(logging.Handler):
    """What other libraries log, as such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and record.exc_info[1] is not None:
            log_error(record.name, record.exc_info[1])
        else:
            log(record.name, level=record.levelname.lower(), message=record.getMessage())
