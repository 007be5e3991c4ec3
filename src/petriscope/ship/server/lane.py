"""The way of images through a model: decoded by a few threads, predicted in batches by one."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from petriscope.core.errors import DataError, PetriscopeError
from petriscope.inference.decoding import DecodedFile
from petriscope.ship.server.counters import Counters
from petriscope.ship.server.limits import Limits, Refusal
from petriscope.ship.server.log_lines import log_error
from petriscope.ship.server.reading import Upload
from petriscope.ship.server.served import Asked, Found, Row, Served, check_pixels
from petriscope.ship.server.watch import State, Watch

T = TypeVar("T")
RULES = 64  # that are kept for later requests
SMALL_BYTES, SMALL_PIXELS = 2**16, 2**16  # of an image that takes longer to hand over to another thread than to decode
CALLS = 16  # overlays that wait; each takes as long as many predictions
FAILED = "the model failed on this image; the log of the server says why"


@dataclass(eq=False)
class Work:
    """The images of one request. Its fields belong to the thread of the event loop, but for ``over``.

    Args:
        rules: see `Served.rules`.
        deadline: by `time.monotonic`.
        done: set when all images have a row.
        left: images without a row.
        over: nobody waits for the rows any more. Its images are dropped where a thread comes upon them.
        failed: images that the model, not the file, failed on.
    """

    rows: list[Row | None]
    rules: Any
    deadline: float
    done: asyncio.Future[None]
    left: int
    over: bool = False
    failed: int = 0

    @property
    def late(self) -> bool:
        return self.over or time.monotonic() > self.deadline


@dataclass(eq=False)
class Item:
    """One image of a `Work`."""

    work: Work
    place: int
    name: str
    content: bytes
    image: DecodedFile | None = None


@dataclass(eq=False)
class Call:
    """Something else that the model is to do, between batches."""

    action: Callable[[], Any]
    done: asyncio.Future[Any]
    deadline: float


@dataclass
class Lane:
    """One model with its threads.

    Args:
        pool: threads that decode, shared by all lanes.
        pending: images that were accepted, have no row yet, and are waited for.
        calls: other work that was accepted, is not done, and is waited for.
        ready: the model has been tried.
        broken: why it is not.
    """

    served: Served
    limits: Limits
    counters: Counters
    pool: ThreadPoolExecutor
    pending: int = 0
    calls: int = 0
    ready: bool = False
    broken: str = ""
    waiting: queue.SimpleQueue[Item | Call | None] = field(default_factory=queue.SimpleQueue)
    known_rules: OrderedDict[tuple[Asked, bool], Any] = field(default_factory=OrderedDict)

    def start(self, try_out: Callable[[Served, int], None]) -> None:
        """Start the threads; the first thing that they do is to try the model."""
        self.loop = asyncio.get_running_loop()
        self.watch = Watch(self.served, self.counters)
        self.thread = threading.Thread(target=self._run, args=(try_out,), name=f"model {self.served.name}", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the threads, after the work that they have."""
        self.waiting.put(None)
        self.thread.join()
        self.watch.stop()

    def state(self) -> State:
        return self.watch.state

    async def rules(self, asked: Asked, withdrawn: bool) -> Any:
        """See `Served.rules`. They may take a while, so another thread makes them."""
        key = asked, withdrawn
        if key not in self.known_rules:
            self.known_rules[key] = await asyncio.to_thread(self.served.rules, asked, withdrawn)
            while len(self.known_rules) > RULES:
                self.known_rules.popitem(last=False)
        return self.known_rules[key]

    async def predict(
        self, files: Sequence[Upload], rules: Any, deadline: float, gone: asyncio.Future[None]
    ) -> tuple[list[Row], int]:
        """A row for each file, and the number of those that the model failed on.

        Args:
            gone: is done when the client has left.

        Raises:
            Refusal: there are too many images already (429), or the deadline has passed (503).
            ClientDisconnect: the client has left.
        """
        self._check_room(len(files))
        work = Work([None] * len(files), rules, deadline, self.loop.create_future(), len(files))
        self.pending += len(files)
        items = [Item(work, place, file.name, file.content) for place, file in enumerate(files)]
        if len(items) == 1 and len(files[0].content) <= SMALL_BYTES:
            self._decode(items[0], SMALL_PIXELS)
        else:
            for item in items:
                self.pool.submit(self._decode, item)
        try:
            await self.wait_for(work.done, deadline, gone)
        finally:
            work.over = True
            for item in items:
                item.content = b""
            if work.left:
                self.pending -= work.left
                self.counters.drop(self.served.name, work.left, "client left" if gone.done() else "deadline")
        return [row for row in work.rows if row is not None], work.failed

    async def call(self, action: Callable[[], T], deadline: float, gone: asyncio.Future[None]) -> T:
        """What ``action`` gives, in the thread of the model.

        Raises:
            Refusal, ClientDisconnect: as `predict`.
            PetriscopeError: the action's.
        """
        if self.calls >= CALLS:
            raise Refusal(429, f"{CALLS} overlays are waiting, as many as may; try again later", "queue", retry_after=1)
        self.calls += 1
        done: asyncio.Future[T] = self.loop.create_future()
        self.waiting.put(Call(action, done, deadline))
        try:
            return await self.wait_for(done, deadline, gone)
        finally:
            self.calls -= 1

    async def wait_for(self, done: asyncio.Future[T], deadline: float, gone: asyncio.Future[None]) -> T:
        """The result of ``done``, which is cancelled if nobody waits for it any more.

        Raises:
            Refusal, ClientDisconnect: as `predict`.
        """
        await asyncio.wait((done, gone), timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        done.cancel()
        if gone.done():
            raise ClientDisconnect
        raise self._late()

    def _check_room(self, count: int) -> None:
        if count > self.limits.queue:
            raise Refusal(413, f"a request may have {self.limits.queue:,} images; send fewer at a time", "queue")
        if self.pending + count > self.limits.queue:
            raise Refusal(
                429,
                f"{self.pending:,} images are waiting for {self.served.name}, and {self.limits.queue:,} may; try again later",
                "queue",
                retry_after=1,
            )

    def _late(self) -> Refusal:
        return Refusal(
            503,
            f"the answer was not there within {self.limits.deadline:g} s, because the server is busy; try again later, or send "
            "fewer images at a time",
            "deadline",
            retry_after=5,
        )

    # ---------------------------------------------------- in the threads of the pool, or for one small image in that of the loop

    def _decode(self, item: Item, here: int | None = None) -> None:
        """Decode an image and let it wait for the model. One of more than ``here`` pixels is left to the pool."""
        content = item.content  # it may be taken away after this
        if item.work.late:
            return
        try:
            pixels = check_pixels(item.name, content, self.limits.pixels)
            if here is not None and pixels > here:
                self.pool.submit(self._decode, item)
                return
            item.image = self.served.decode(item.name, content)
        except DataError as error:
            self._finish([(item, Found(Row(file=item.name, error=str(error))))])
        except Exception as error:  # such as a lack of memory
            log_error("decoding", error)
            row = Row(file=item.name, error=f"{item.name} cannot be read: {type(error).__name__}")
            self._finish([(item, Found(row))])
        else:
            item.content = b""
            self.waiting.put(item)

    # ---------------------------------------------------------------------------------------- in the thread of the model

    def _run(self, try_out: Callable[[Served, int], None]) -> None:
        try:
            try_out(self.served, self.limits.batch)
            self.ready = True
        except Exception as error:
            self.broken = str(error) if isinstance(error, PetriscopeError) else "the model failed when it was tried"
            log_error("trying the model", error)
        following: Item | Call | None = None
        while True:
            first = following or self.waiting.get()
            following = None
            if first is None:
                return
            if isinstance(first, Call):
                self._carry_out(first)
                continue
            batch, following, ended = self._gather(first)
            self._predict(batch)
            if ended:
                return

    def _gather(self, first: Item) -> tuple[list[Item], Call | None, bool]:
        """A batch, what comes after it, and whether nothing does. It waits only for images that have been accepted."""
        batch, until = [] if first.work.late else [first], time.monotonic() + self.limits.wait
        while len(batch) < self.limits.batch:
            try:
                following = self.waiting.get_nowait()
            except queue.Empty:
                left = until - time.monotonic()
                if left <= 0 or self.pending <= len(batch):
                    break
                try:
                    following = self.waiting.get(timeout=left)
                except queue.Empty:
                    break
            if following is None:
                return batch, None, True
            if isinstance(following, Call):
                return batch, following, False
            if not following.work.late:
                batch.append(following)
        return batch, None, False

    def _predict(self, batch: list[Item]) -> None:
        if not batch:
            return
        self.counters.batch(self.served.name, len(batch))
        found = self._found(batch)
        self._finish(list(zip(batch, found, strict=True)))
        images = [item.image for item in batch if item.image is not None]
        self.watch.note(images, [each.seen for each in found])

    def _found(self, batch: list[Item]) -> list[Found]:
        try:
            images = [item.image for item in batch if item.image is not None]
            found = self.served.predict([item.name for item in batch], images, [item.work.rules for item in batch])
            return list(found)
        except Exception as error:
            if len(batch) > 1:  # one of them may be at fault; the others are of other people
                return [each for item in batch for each in self._found([item])]
            log_error("predicting", error)
            batch[0].work.failed += 1
            return [Found(Row(file=batch[0].name, error=FAILED))]

    def _carry_out(self, call: Call) -> None:
        if call.done.cancelled() or time.monotonic() > call.deadline:
            return
        try:
            result, error = call.action(), None
        except Exception as raised:
            result, error = None, raised
        self.loop.call_soon_threadsafe(self._called, call, result, error)

    def _finish(self, done: list[tuple[Item, Found]]) -> None:
        self.loop.call_soon_threadsafe(self._finished, done)

    # ---------------------------------------------------------------------------------------- in the thread of the loop

    def _called(self, call: Call, result: Any, error: Exception | None) -> None:
        if call.done.cancelled():
            return
        if error is None:
            call.done.set_result(result)
        else:
            call.done.set_exception(error)
            call.done.exception()  # it is known, even if nobody waits for it

    def _finished(self, done: list[tuple[Item, Found]]) -> None:
        for item, found in done:
            work = item.work
            if work.over:
                continue  # counted as dropped
            self.pending -= 1
            self.counters.image(self.served.name, found)
            work.rows[item.place] = found.row
            work.left -= 1
            if not work.left:
                work.done.set_result(None)
