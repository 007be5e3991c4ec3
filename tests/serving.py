"""A server for tests: a run to serve, a model that does as it is told, and the server in this process."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from io import BytesIO
from types import MappingProxyType

import httpx
import numpy as np
from PIL import Image

from petriscope import api
from petriscope.data.contents import Content
from petriscope.data.decode import decode_with_content
from petriscope.data.in_memory import InMemory
from petriscope.inference.base import Reading
from petriscope.inference.decoding import DecodedFile
from petriscope.ship.server.segmentation import NoRules
from petriscope.ship.server.served import Found, Row
from petriscope.ship.server.web import create_app

SIDE = 16


def blobs(n, seed, light=0):
    """Dark discs on a bright ground, large and small: two classes. ``light``: is taken from the ground."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:SIDE, :SIDE] - 7.5
    inside = (x**2 + y**2)[None] < (rng.normal(3, 0.2, n) + 3 * labels)[:, None, None] ** 2
    level = np.where(inside, rng.normal(90, 5, n)[:, None, None], rng.normal(215, 4, n)[:, None, None] - light)
    images = level[..., None] + rng.normal(0, 6, (n, SIDE, SIDE, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def train_on_blobs(tiny_recipe, folder):
    """A run with 500 images of val."""
    arrays = {}
    for seed, (split, count) in enumerate((("train", 160), ("val", 500))):
        images, labels = blobs(count, seed)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(folder / "blobs.npz", **arrays)
    recipe = tiny_recipe(data={"source": str(folder / "blobs.npz")}, augment=["flip"], training={"epochs": 5})
    return api.train(recipe, folder / "blobs", quiet=True).folder


def png(pixels):
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def form(*contents):
    """The files of a form for httpx."""
    return [("file", (f"{place}.png", content)) for place, content in enumerate(contents)]


NOISE = png(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


class Told:
    """A `Served` that predicts when it is let, and remembers the sizes of its batches."""

    name, fingerprint, task, classes, shape = "told", "0" * 64, "classification", ("a", "b"), (SIDE, SIDE, 3)
    reading = Reading()
    likeness, untested, max_errors, coverages, colors = None, "there is nothing to compare with", (), (), ()
    unshown, assumed = "", MappingProxyType({})

    def __init__(self, fails=False):
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.batches = []
        self.fails = fails

    def decode(self, name, content) -> DecodedFile:
        pixels, found = decode_with_content(InMemory(name, content), self.shape[:2], channels="rgb")
        assert isinstance(found, Content)
        return DecodedFile(pixels, pixels, found.size)

    def rules(self, asked, withdrawn):
        return NoRules()

    def predict(self, names, images, rules):
        self.batches.append(len(names))
        self.begun.set()
        assert self.go.wait(30)
        if self.fails:
            raise RuntimeError(f"failed on {names}")
        return [Found(Row(file=name, error=None, predicted="a", probabilities={"a": 1.0, "b": 0.0})) for name in names]

    def verdict(self, test, without_guarantee):
        return [str(test.not_tested)]

    def overlay(self, image):
        return image.pixels


def no_trial(served, batch):
    """Leaves a model untried."""


@asynccontextmanager
async def serving(model, limits=None, token="", local=False):
    """A client of a server in this process, without a network, and the server."""
    gate = create_app([model], limits, token, no_trial, local)
    async with gate.app.router.lifespan_context(gate.app):
        transport = httpx.ASGITransport(gate, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
            while (await client.get("/health/ready", headers={"Host": "localhost"})).status_code != 200:
                pass
            yield client, gate
