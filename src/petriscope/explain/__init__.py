"""Explanations: maps of the parts of an image that a prediction depends on. `EXPLAINERS` lists the methods; `explain` makes
the maps.

A method is called with the model, normalized images, float32 [B, C, H, W], and a `petriscope.explain.question.Question`.
Its keyword-only parameters are its options. It returns float32 [B, h, w] at any resolution; higher values are stronger
evidence for the class, values below 0 are evidence against it. `petriscope.explain.checks` measures whether maps can be
trusted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.device import tensor_of
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from petriscope.inference.predictor import Predictor

EXPLAINERS = Registry(
    "explanation",
    {
        "grad-cam": "petriscope.explain.cam:grad_cam",
        "grad-cam++": "petriscope.explain.cam:grad_cam_plus_plus",
        "hires-cam": "petriscope.explain.cam:hires_cam",
        "attention-gradient": "petriscope.explain.attention_maps:attention_gradient",
        "attention-rollout": "petriscope.explain.attention_maps:attention_rollout",
        "occlusion": "petriscope.explain.occlusion_map:occlusion",
    },
)
BATCH_PIXELS = 2**20  # per batch; the feature maps of all layers are in memory
LARGEST_BATCH = 128


def methods_for(predictor: Predictor) -> list[str]:
    """The methods that work for this model; the first is the default of `explain`.

    Attention methods work for transformers with attention over the whole image. Class activation maps work for networks
    with feature maps; a segmenter needs a bottleneck of at least two positions per side. Occlusion works for any network.
    """
    import torch

    from petriscope.explain.attention_maps import sees_whole_image
    from petriscope.explain.cam import has_feature_maps

    height, width, channels = predictor.shape
    blank = torch.zeros(1, channels, height, width, device=predictor.device)
    with frozen_in_float32(predictor.model) as model, torch.no_grad():
        if not predictor.task.dense and sees_whole_image(model, blank):
            return ["attention-rollout", "attention-gradient", "occlusion"]
        if (not predictor.task.dense or hasattr(model, "bottleneck")) and has_feature_maps(model, blank):
            return ["hires-cam", "grad-cam", "grad-cam++", "occlusion"]
    return ["occlusion"]


def chosen(predictor: Predictor, method: str | Part) -> Part:
    """The method with its options; for ``auto``, the first of `methods_for`.

    Raises:
        RequestError: there is no such method, or it does not work for this model.
    """
    have = methods_for(predictor)
    part = Part(name=method) if isinstance(method, str) else method
    part = Part(name=have[0]) if part.name == "auto" else part
    EXPLAINERS.check(part)
    if part.name not in have:
        name = predictor.recipe.model.name
        raise RequestError(f"{part.name} does not work for {name}; use {', '.join(have)}")
    return part


def explain(
    predictor: Predictor,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    method: str | Part = "auto",
    regions: np.ndarray | None = None,
) -> np.ndarray:
    """Explain predictions, in float32 regardless of the precision of the predictor.

    Args:
        predictor: its weights, gradients, modes and flags are left unchanged.
        images: uint8 [B, H, W, C], in the shape of the predictor.
        classes: the class to explain for each image, int64 [B]; None: the predicted class, without test-time
            augmentation. For segmentation, see `petriscope.explain.regions.largest_class`.
        method: a name in `EXPLAINERS`, a `Part` with options, or ``auto``: the first of `methods_for`.
        regions: for segmentation, the pixels whose class is explained, bool [B, H, W]; None: the pixels predicted as the
            class, without test-time augmentation.

    Returns:
        float32 [B, H, W], 0 to 1; the maximum of each map is 1. A map is 0 everywhere if the method finds no evidence for
        the class, or if the region is empty.

    Raises:
        RequestError: the images have another shape or dtype, a class or the method is unknown, or the method does not work
            for this model.
    """
    import torch

    from petriscope.explain.cam import covered
    from petriscope.explain.question import Question
    from petriscope.explain.regions import largest_class, predicted_masks

    images = np.asarray(images)
    if images.dtype != predictor.dtype or images.shape[1:] != predictor.shape:
        shape = ", ".join(map(str, predictor.shape))
        raise RequestError(f"this model takes {predictor.dtype} [B, {shape}], not {images.dtype} {list(images.shape)}")
    if regions is not None and (
        not predictor.task.dense or regions.shape != images.shape[:3] or regions.dtype != np.bool_
    ):
        raise RequestError(f"regions must be bool {list(images.shape[:3])}, and the model a segmentation model")
    masks = (
        predicted_masks(predictor, images) if predictor.task.dense and (classes is None or regions is None) else None
    )
    if classes is None and masks is not None:
        classes = largest_class(masks, predictor.classes)
    elif classes is None:
        classes = predictor.probabilities(images, tta="none").argmax(1) if len(images) else np.zeros(0)
    classes = np.asarray(classes, dtype=np.int64)
    if classes.shape != (len(images),):
        raise RequestError(f"classes have the shape {list(classes.shape)}; give one class per image, [{len(images)}]")
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(predictor.classes):
        raise RequestError(f"there are {len(predictor.classes)} classes, counted from 0; got {classes.max()}")
    if masks is not None and regions is None:
        regions = masks == classes[:, None, None]
    part = chosen(predictor, method)
    function, options = EXPLAINERS.find(part.name), EXPLAINERS.check(part)
    height, width, _ = predictor.shape
    size = max(1, min(LARGEST_BATCH, BATCH_PIXELS // (height * width)))
    out = np.zeros((len(images), height, width), dtype=np.float32)
    with frozen_in_float32(predictor.model) as model, torch.autocast(predictor.device.type, enabled=False):
        for start in range(0, len(images), size):
            block = tensor_of(images[start : start + size]).to(predictor.device)
            asked = tensor_of(classes[start : start + size]).to(predictor.device)
            where = None if regions is None else tensor_of(regions[start : start + size]).to(predictor.device)
            question = Question(asked, where, predictor.task)
            raw = function(model, predictor.normalize(block), question, **options).detach().float()
            out[start : start + size] = _scaled(raw, (height, width), covered(model, height, width)).cpu().numpy()
    return out


def _scaled(maps: Tensor, size: tuple[int, int], full: tuple[int, int]) -> Tensor:
    """Resize maps to the images, and scale each to [0, 1]. Maps of another size than the images cover ``full`` pixels."""
    import torch.nn.functional as F

    maps = maps.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    if maps.shape[1:] != size:
        maps = F.interpolate(maps[:, None], full, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    # A constant map becomes 0; scaling would amplify its rounding errors.
    varies = high - low > 1e-6 * high
    return ((maps - low) / (high - low).clamp_min(1e-30) * varies).clamp(0, 1)


@contextmanager
def frozen_in_float32(model: nn.Module) -> Iterator[nn.Module]:
    """The model in float32 and evaluation mode, without gradients of its weights. Its state is restored afterwards."""
    import torch

    if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).float()
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield model.eval().requires_grad_(False)
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
