"""Masks behind the server."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from petriscope.core.drawing import overlay, palette
from petriscope.core.errors import RequestError
from petriscope.inference.base import Segments
from petriscope.inference.decoding import DecodedFile
from petriscope.inference.package import Package
from petriscope.inference.predictor import Predictor
from petriscope.ship.server.model import FileModel
from petriscope.ship.server.served import Asked, Found, Row


@dataclass(frozen=True)
class NoRules:
    """Predictions without thresholds."""

    notes: tuple[str, ...] = ()


class Segmenter(FileModel):
    """A `petriscope.ship.server.served.Served` for whatever gives each pixel a class."""

    task = "segmentation"

    def __init__(self, model: Segments, name: str, fingerprint: str) -> None:
        super().__init__(model, name, fingerprint, show=self._shown)
        self.segments = model

    def rules(self, asked: Asked, withdrawn: bool) -> NoRules:
        if asked.guarantees:
            raise RequestError("max_error and coverage need a classification model; this model predicts masks")
        return NoRules()

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[NoRules]) -> list[Found]:
        probabilities = self.segments.probabilities(np.stack([image.pixels for image in images]))
        return [self._found(*each) for each in zip(names, images, probabilities, strict=True)]

    def _found(self, name: str, image: DecodedFile, p: np.ndarray) -> Found:
        mask = p.argmax(0).astype(np.uint8)
        counts = np.bincount(mask.reshape(-1), minlength=len(self.classes))
        row = Row(
            file=name,
            predicted=self.classes[int(counts.argmax())],
            confidence=float(p.max(0).mean()),
            error=None,
            mask=base64.b64encode(self._png(_of_size(mask, image.size))).decode("ascii"),
            shares=dict(zip(self.classes, (counts / mask.size).tolist(), strict=True)),
        )
        return Found(row)

    def _shown(self, image: DecodedFile) -> np.ndarray:
        (p,) = self.segments.probabilities(image.pixels[None])
        return overlay(image.pixels, p.argmax(0).astype(np.uint8), len(self.classes))

    def _png(self, mask: np.ndarray) -> bytes:
        image, out = Image.fromarray(mask), BytesIO()
        image.putpalette(palette(len(self.classes)).tobytes())
        image.save(out, "PNG")
        return out.getvalue()


def _of_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask, uint8 [H, W], in the (height, width) of its image."""
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def of_run(predictor: Predictor, name: str, fingerprint: str, adapts: bool) -> Segmenter:
    """A run or a model file behind the server."""
    return Segmenter(predictor, name, fingerprint)


def of_package(package: Package, name: str) -> Segmenter:
    """A package behind the server."""
    return Segmenter(package, name, package.manifest.fingerprint)
