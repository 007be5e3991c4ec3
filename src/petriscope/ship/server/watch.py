"""Compares the images that come in with those of val, and withdraws guarantees where they are not like them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel

from petriscope.core.shift_results import ShiftTest
from petriscope.inference.decoding import DecodedFile, digests_of
from petriscope.ship.server.counters import Counters
from petriscope.ship.server.log_lines import log, log_error
from petriscope.ship.server.served import Served
from petriscope.trust.two_sample import FALSE_ALARMS, Traits, compare, joined

MOST = 200  # images, the last ones
SHARE = 0.05  # of the time that comparisons take, at most
PAUSE = 1.0  # seconds before a comparison
CHUNK = 16  # images whose traits are computed at a time; requests wait that long

Standing = Literal["not tested", "not withdrawn", "withdrawn"]


class Guarantee(BaseModel):
    """Whether guarantees hold for the images that come in.

    Args:
        state: ``not withdrawn``: the last images were compared with those of val, and not shown to be unlike them.
        sentences: what that means, as `petriscope predict` says it.
        compared: how many of the last images were compared.
        since: images that came in after them.
        p: the p-value of the comparison; None: not tested.
        level: p-values up to which guarantees are withdrawn.
    """

    state: Standing
    sentences: list[str]
    compared: int
    since: int
    p: float | None
    level: float


@dataclass(frozen=True)
class State:
    """The result of the last comparison, and the number of images that came in since."""

    test: ShiftTest
    since: int = 0

    @property
    def withdrawn(self) -> bool:
        return self.test.withdrawn

    def describe(self, served: Served, without_guarantee: bool) -> Guarantee:
        test = self.test
        standing: Standing = (
            "not tested" if test.not_tested is not None else "withdrawn" if test.withdrawn else "not withdrawn"
        )
        return Guarantee(
            state=standing,
            sentences=served.verdict(test, without_guarantee),
            compared=test.n,
            since=self.since,
            p=test.p,
            level=test.level,
        )


class Watch:
    """Keeps the last `MOST` images, each once, and compares them now and then in a thread of its own."""

    def __init__(self, served: Served, counters: Counters) -> None:
        self.served, self.counters = served, counters
        self.recent: OrderedDict[bytes, np.ndarray | Traits] = OrderedDict()
        self.since = 0
        self.test = self._untested("no images have come in yet" if served.likeness is not None else served.untested)
        self.changed = threading.Condition()
        self.stopped = False
        self.thread = threading.Thread(target=self._run, name=f"comparing {served.name}", daemon=True)
        if served.likeness is not None:
            self.thread.start()

    @property
    def state(self) -> State:
        return State(self.test, self.since)

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify()
        if self.thread.is_alive():
            self.thread.join()

    def note(self, images: Sequence[DecodedFile], seen: Sequence[tuple[Traits, int] | None]) -> None:
        """Take images into account, with what was seen of them when they were predicted. An image that came in before is no new
        evidence."""
        if self.served.likeness is None:
            return
        images, seen = images[-MOST:], seen[-MOST:]
        digests = digests_of(images)
        with self.changed:
            for digest, image, traits in zip(digests, images, seen, strict=True):
                if digest in self.recent:
                    self.recent.move_to_end(digest)
                    continue
                self.recent[digest] = image.pixels if traits is None else traits[0].take(np.array([traits[1]]))
                self.since += 1
            while len(self.recent) > MOST:
                self.recent.popitem(last=False)
            self.changed.notify()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopped or self.since)
                self.changed.wait_for(lambda: self.stopped, timeout=PAUSE)  # what comes together is compared together
                if self.stopped:
                    return
            start = time.thread_time()
            try:
                self._compare()
            except Exception as error:
                log_error("comparing with val", error)
            took = time.thread_time() - start
            with self.changed:
                self.changed.wait_for(lambda: self.stopped, timeout=took * (1 / SHARE - 1))

    def _compare(self) -> None:
        with self.changed:
            kept, taken = dict(self.recent), self.since
        digests = list(kept)
        new = self.served.unlearned(digests)
        digests = [digest for digest, unlearned in zip(digests, new, strict=True) if unlearned]
        pixels = [(digest, each) for digest in digests if isinstance(each := kept[digest], np.ndarray)]
        for start in range(0, len(pixels), CHUNK):
            block = pixels[start : start + CHUNK]
            traits = self.served.traits(np.stack([image for _, image in block]))
            for row, (digest, _) in enumerate(block):
                kept[digest] = traits.take(np.array([row]))
        with self.changed:
            for digest, _ in pixels:
                if digest in self.recent:
                    self.recent[digest] = kept[digest]
        self._conclude([each for digest in digests if isinstance(each := kept[digest], Traits)])
        with self.changed:
            self.since -= taken

    def _conclude(self, traits: list[Traits]) -> None:
        likeness, before = self.served.likeness, self.test
        assert likeness is not None
        if traits:
            self.test = compare(likeness, joined(traits), self.served.classes)
        else:
            self.test = self._untested("the model has learned from all of them")
        self.counters.compared(self.served.name, self.test)
        if self.test.withdrawn != before.withdrawn:
            log(
                "guarantees withdrawn" if self.test.withdrawn else "guarantees hold again",
                model=self.served.name,
                compared=self.test.n,
                p=self.test.p,
            )

    def _untested(self, why: str) -> ShiftTest:
        likeness = self.served.likeness
        val = 0 if likeness is None else len(likeness.target)
        return ShiftTest(n=0, of=0, val=val, level=FALSE_ALARMS, not_tested=why)
