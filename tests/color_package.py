"""Packages whose models need no training: an image, or a pixel, is of the class of its brightest channel, or an image has the
label of each bright channel. Bright images are outliers."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petriscope.inference.package import (
    ARRAYS,
    CUTOFFS,
    LIMITS,
    MANIFEST,
    MODEL,
    Coverage,
    ErrorRate,
    Input,
    Manifest,
    _identity,
    _manifest,
    digest,
)
from petriscope.inference.package import CLASSIFIER as CLASSIFIER_OUTPUTS
from petriscope.inference.package import LABELER as LABELER_OUTPUTS
from petriscope.inference.package import SEGMENTER as SEGMENTER_OUTPUTS
from petriscope.trust.state import TENSORS
from petriscope.trust.two_sample import KINDS, Likeness, traits_of

CLASSES = ("red", "green", "blue, or so")
SIDE = (10, 12)
THRESHOLDS = (None, 0.02, 0.2)
RATES = (0.005, 0.01, 0.1)
CUT = (0.5, 0.4, 0.6)  # the cutoffs of labels
# fmt: off
CLASSIFIER = """
<ir_version: 8, opset_import: ["" : 18]>
color (uint8[n, 10, 12, 3] images) => (float[n, 3] probabilities, float[n, 3] raw, int64[n] label, float[n] uncertainty,
    float[n] ood, int64[n, 3] answers, bool[n, 2, 3] sets, float[n, 3] points, int64[n] plain_label, float[n] plain_uncertainty,
    float[n, 6] appearance)
<float sharp = {0.02}, float bright = {200.0}, int64[2] places = {1, 2}, int64[1] last = {1}, float one = {1.0},
 float[3] thresholds = {-1.0, 0.02, 0.2}, float[1, 2, 1] limits = {0.1, 0.02}, int64 none = {-1}>
{
    pixels = Cast <to = 1> (images)
    color = ReduceMean <keepdims = 0> (pixels, places)
    logits = Mul (color, sharp)
    raw = Softmax <axis = 1> (logits)
    probabilities = Identity (raw)
    label = ArgMax <axis = 1, keepdims = 0> (probabilities)
    largest = ReduceMax <keepdims = 0> (probabilities, last)
    uncertainty = Sub (one, largest)
    brightness = ReduceMean <keepdims = 0> (color, last)
    ood = Div (brightness, bright)
    doubt = Unsqueeze (uncertainty, last)
    sure = LessOrEqual (doubt, thresholds)
    near = LessOrEqual (ood, one)
    inside = Unsqueeze (near, last)
    answered = And (sure, inside)
    guess = Unsqueeze (label, last)
    answers = Where (answered, guess, none)
    each = Unsqueeze (probabilities, last)
    sets = GreaterOrEqual (each, limits)
    points = Div (color, bright)
    plain_label = Identity (label)
    plain_uncertainty = Identity (uncertainty)
    appearance = Concat <axis = 1> (color, points)
}
"""
LABELER = """
<ir_version: 8, opset_import: ["" : 18]>
color (uint8[n, 10, 12, 3] images) => (float[n, 3] probabilities, float[n, 3] raw, bool[n, 3] labels, float[n] ood,
    int64[n, 3, 3] answers, float[n, 3] points, int64[n] plain_label, float[n] plain_uncertainty, float[n, 6] appearance)
<float sharp = {0.05}, float middle = {100.0}, float bright = {200.0}, int64[2] places = {1, 2}, int64[1] last = {1},
 float one = {1.0}, float[3] cutoffs = {0.5, 0.4, 0.6}, float[1, 3, 1] limits = {-1.0, 0.02, 0.2}, int64 none = {-1}>
{
    pixels = Cast <to = 1> (images)
    color = ReduceMean <keepdims = 0> (pixels, places)
    above = Sub (color, middle)
    logits = Mul (above, sharp)
    raw = Sigmoid (logits)
    probabilities = Identity (raw)
    labels = GreaterOrEqual (probabilities, cutoffs)
    brightness = ReduceMean <keepdims = 0> (color, last)
    ood = Div (brightness, bright)
    rest = Sub (one, probabilities)
    doubt = Where (labels, rest, probabilities)
    each = Unsqueeze (doubt, last)
    sure = LessOrEqual (each, limits)
    near = LessOrEqual (ood, one)
    inside = Unsqueeze (near, places)
    answered = And (sure, inside)
    present = Cast <to = 7> (labels)
    guess = Unsqueeze (present, last)
    answers = Where (answered, guess, none)
    points = Div (color, bright)
    plain_label = ArgMax <axis = 1, keepdims = 0> (probabilities)
    half = Min (probabilities, rest)
    plain_uncertainty = ReduceMean <keepdims = 0> (half, last)
    appearance = Concat <axis = 1> (color, points)
}
"""
SEGMENTER = """
<ir_version: 8, opset_import: ["" : 18]>
color (uint8[n, 10, 12, 3] images) => (uint8[n, 10, 12] classes, float[n, 10, 12] confidence, float[n, 3, 10, 12] probabilities)
<float sharp = {0.02}, int64[1] second = {1}>
{
    pixels = Cast <to = 1> (images)
    planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
    logits = Mul (planes, sharp)
    probabilities = Softmax <axis = 1> (logits)
    best = ArgMax <axis = 1, keepdims = 0> (probabilities)
    classes = Cast <to = 2> (best)
    confidence = ReduceMax <keepdims = 0> (probabilities, second)
}
"""
# fmt: on


def images(count: int = 12, seed: int = 0) -> np.ndarray:
    """Of one color each, with noise, uint8 [N, H, W, 3]; every fourth is bright."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (count, 1, 1, 3))
    base[::4] = rng.integers(180, 230, (len(base[::4]), 1, 1, 3))
    return (base + rng.integers(-20, 20, (count, *SIDE, 3))).clip(0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def predict(package: Path, given: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a package's model by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(package / "model.onnx")
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, {"images": given}), strict=True))


def _val(package: Path, count: int = 200) -> dict[str, np.ndarray]:
    """What images of val are like, as the arrays of a package have it."""
    found = predict(package, images(count, seed=1))
    likeness = Likeness(
        np.eye(3, dtype=np.float32),
        traits_of(found["points"], found["plain_uncertainty"], found["plain_label"], found["ood"], found["appearance"]),
        found["plain_label"],
    )
    return {f"{TENSORS}likeness/{name}": values for name, values in likeness.arrays()}


def write_package(folder: Path, task: str = "classification", **changes: Any) -> Path:
    """The package of a task, with six test images.

    Args:
        changes: of the manifest.
    """
    import onnx
    from onnx import parser

    (folder / "tests").mkdir(parents=True)
    dense, labels = task == "segmentation", task == "multilabel"
    outputs = SEGMENTER_OUTPUTS if dense else LABELER_OUTPUTS if labels else CLASSIFIER_OUTPUTS
    onnx.save(parser.parse_model(SEGMENTER if dense else LABELER if labels else CLASSIFIER), folder / "model.onnx")
    arrays = {LIMITS: np.zeros((0, 3))} if dense else {LIMITS: np.full((2, 3), 0.9), **_val(folder)}
    if labels:
        limits = np.repeat([-np.inf, 0.02, 0.2], 6).reshape(3, 3, 2)
        arrays |= {LIMITS: limits, CUTOFFS: np.array(CUT, np.float32)}
    np.savez(folder / ARRAYS, **arrays)
    some = images(6)
    for number, image in enumerate(some):
        (folder / "tests" / f"{number}.png").write_bytes(png(image))
    names = np.array([f"{number}.png" for number in range(6)])
    key = "classes" if dense else "labels" if labels else "label"
    np.savez(folder / "tests" / "vectors.npz", names=names, **{key: predict(folder, some)[key]})
    rates = tuple(
        ErrorRate(rate, None if labels else threshold, 100, 0, 0.05, (f"a note on {100 * rate:g} %",))
        for rate, threshold in zip(RATES, THRESHOLDS, strict=True)
    )
    likeness = {name: f"{TENSORS}likeness/{name}" for name in KINDS if f"{TENSORS}likeness/{name}" in arrays}
    manifest = Manifest(
        name="colors",
        created="2026-01-01T00:00:00+00:00",
        task=task,
        classes=CLASSES,
        input=Input(*SIDE, 3, "bilinear", 16, False),
        precision="fp32",
        tta="none",
        temperature=1.0,
        outputs=outputs,
        error_rates=() if dense else rates,
        coverages=() if dense or labels else (Coverage(0.9), Coverage(0.95)),
        recipe={"model": {"name": "colors"}},
        trust={"references": {}, "detector": None, "likeness": likeness or None},
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        versions={},
        files={name: digest(folder / name) for name in (MODEL, ARRAYS)},
    )
    tree = {**manifest.as_json(), **changes}
    made = _manifest(tree)
    tree["fingerprint"] = _identity(tree, {name: made.files.get(name) for name in (*made.model_files, ARRAYS)})
    (folder / MANIFEST).write_text(json.dumps(tree))
    return folder
