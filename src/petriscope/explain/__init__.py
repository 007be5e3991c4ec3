"""Where a network looks: maps of what its answer rests on. `EXPLAINERS` lists the methods; `explain` makes the maps.

A method is called with the model, normalized float32 [B, C, H, W] and the `petriscope.explain.question.Question`; its
keyword-only parameters are its options. It gives float32 [B, h, w], coarse or fine, the more the stronger; what is below 0
counts against the class. `petriscope.explain.checks` says whether such maps can be trusted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

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
BATCH_PIXELS = 2**20  # of a batch; the maps of all its layers are in memory
LARGEST_BATCH = 128


def methods_for(predictor: Predictor) -> list[str]:
    """The methods that can be asked about this model, the one that `explain` takes by itself first.

    Transformers that attend over the whole image are explained by their attention, networks with feature maps (of masks,
    with a bottleneck of two places per side or more) by class activation maps, and occlusion asks no network how it is made.
    """
    import torch

    from petriscope.explain.attention_maps import sees_whole_image
    from petriscope.explain.cam import has_feature_maps

    height, width, channels = predictor.shape
    blank = torch.zeros(1, channels, height, width, device=predictor.device)
    with undisturbed(predictor.model) as model, torch.no_grad():
        if not predictor.task.dense and sees_whole_image(model, blank):
            return ["attention-rollout", "attention-gradient", "occlusion"]
        if (not predictor.task.dense or hasattr(model, "bottleneck")) and has_feature_maps(model, blank):
            return ["hires-cam", "grad-cam", "grad-cam++", "occlusion"]
    return ["occlusion"]


def chosen(predictor: Predictor, method: str | Part) -> Part:
    """The method asked for, with its options; of ``auto``, the first of `methods_for`.

    Raises:
        RequestError: there is no such method, or this model has nothing that it could go by.
    """
    have = methods_for(predictor)
    part = Part(name=method) if isinstance(method, str) else method
    part = Part(name=have[0]) if part.name == "auto" else part
    EXPLAINERS.check(part)
    if part.name not in have:
        name = predictor.recipe.model.name
        raise RequestError(f"{part.name} finds nothing to go by in {name}; explain it by {', '.join(have)}")
    return part


def explain(
    predictor: Predictor,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    method: str | Part = "auto",
    regions: np.ndarray | None = None,
) -> np.ndarray:
    """What a predictor's answers rest on, in float32 whatever the format it predicts in.

    Args:
        predictor: left as it was: weights, gradients, modes and flags.
        images: uint8 [B, H, W, C], of the predictor's shape.
        classes: int64 [B], the class asked about in each image; None: the one predicted, without test-time
            augmentation; of masks, see `petriscope.explain.regions.largest_class`.
        method: a name in `EXPLAINERS`, a `Part` with options, or ``auto``: the first of `methods_for`.
        regions: of a model of masks, bool [B, H, W], the pixels whose class is asked about; None: those predicted as the
            class, without test-time augmentation.

    Returns:
        float32 [B, H, W] in [0, 1]: 1 where an image's answer rests on it most; all 0 where the method finds nothing in
        favor of the class, or the region is empty.

    Raises:
        RequestError: images of another shape, an unknown class or method, or a method that this model has nothing for.
    """
    import torch

    from petriscope.explain.cam import covered
    from petriscope.explain.question import Question
    from petriscope.explain.regions import largest_class, predicted_masks

    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != predictor.shape:
        shape = ", ".join(map(str, predictor.shape))
        raise RequestError(f"this model takes uint8 [B, {shape}], not {images.dtype} {list(images.shape)}")
    if regions is not None and (
        not predictor.task.dense or regions.shape != images.shape[:3] or regions.dtype != np.bool_
    ):
        raise RequestError("regions are bool [B, H, W], of the images, for models of masks")
    masks = (
        predicted_masks(predictor, images) if predictor.task.dense and (classes is None or regions is None) else None
    )
    if classes is None and masks is not None:
        classes = largest_class(masks, predictor.classes)
    elif classes is None:
        classes = predictor.probabilities(images, tta="none").argmax(1) if len(images) else np.zeros(0)
    classes = np.asarray(classes, dtype=np.int64)
    if classes.shape != (len(images),):
        raise RequestError(f"{list(classes.shape)} classes for {len(images)} images; give one each")
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(predictor.classes):
        raise RequestError(f"there are {len(predictor.classes)} classes, counted from 0; got {classes.max()}")
    if masks is not None and regions is None:
        regions = masks == classes[:, None, None]
    part = chosen(predictor, method)
    function, options = EXPLAINERS.find(part.name), EXPLAINERS.check(part)
    height, width, _ = predictor.shape
    size = max(1, min(LARGEST_BATCH, BATCH_PIXELS // (height * width)))
    out = np.zeros((len(images), height, width), dtype=np.float32)
    with undisturbed(predictor.model) as model, torch.autocast(predictor.device.type, enabled=False):
        for start in range(0, len(images), size):
            block = torch.from_numpy(np.ascontiguousarray(images[start : start + size])).to(predictor.device)
            asked = torch.from_numpy(classes[start : start + size]).to(predictor.device)
            where = None if regions is None else torch.from_numpy(regions[start : start + size]).to(predictor.device)
            raw = function(model, predictor.normalize(block), Question(asked, where), **options).detach().float()
            out[start : start + size] = _scaled(raw, (height, width), covered(model, height, width)).cpu().numpy()
    return out


def _scaled(maps: Tensor, size: tuple[int, int], full: tuple[int, int]) -> Tensor:
    """Enlarged to the images, and each map brought to [0, 1]; maps of another size cover ``full``."""
    import torch.nn.functional as F

    maps = maps.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    if maps.shape[1:] != size:
        maps = F.interpolate(maps[:, None], full, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    # A map that is the same all over says nothing of places; rounding must not be blown up to a pattern.
    says = high - low > 1e-6 * high
    return ((maps - low) / (high - low).clamp_min(1e-30) * says).clamp(0, 1)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """The model in float32 and evaluation mode, its weights without gradients; afterwards all is as before."""
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
