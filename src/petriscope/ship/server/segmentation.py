"""Masks behind the server."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from petriscope.core.drawing import overlay, palette, shown
from petriscope.core.errors import RequestError
from petriscope.inference.base import Segments
from petriscope.inference.decoding import DecodedFile
from petriscope.inference.package import Package
from petriscope.inference.predictor import Predictor
from petriscope.inference.segmentation import segment
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
        self.colors = tuple("#" + bytes(color).hex() for color in palette(len(self.classes))[: len(self.classes)])

    def rules(self, asked: Asked, withdrawn: bool) -> NoRules:
        if asked.guarantees:
            raise RequestError("max_error and coverage need a classification model; this model predicts masks")
        return NoRules()

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[NoRules]) -> list[Found]:
        masks = segment(self.segments, [image.pixels for image in images])
        return [self._found(*each) for each in zip(names, images, masks, strict=True)]

    def _found(self, name: str, image: DecodedFile, found: tuple[np.ndarray, float]) -> Found:
        mask, confidence = found
        counts = np.bincount(mask.reshape(-1), minlength=len(self.classes))
        row = Row(
            file=name,
            predicted=self.classes[int(counts.argmax())],
            confidence=confidence,
            error=None,
            mask=base64.b64encode(self._png(_of_size(mask, image.size))).decode("ascii"),
            shares=dict(zip(self.classes, (counts / mask.size).tolist(), strict=True)),
        )
        return Found(row)

    def _shown(self, image: DecodedFile) -> np.ndarray:
        ((mask, _),) = segment(self.segments, [image.pixels])
        return overlay(shown(image.pixels, self.reading.channels), mask, len(self.classes))

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
