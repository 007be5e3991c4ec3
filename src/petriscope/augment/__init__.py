"""Augmentation of whole batches, each picture with its own draw.

`AUGMENTATIONS` lists what a recipe can name; `Pipeline` runs a list of them. Geometric operations are multiplied into
one matrix a picture, so a batch is resampled once; color operations likewise.
"""

from petriscope.parts import Catalogue

AUGMENTATIONS = Catalogue(
    "augmentation",
    {
        "flip": "petriscope.augment.geometry:Flip",
        "quarter-turn": "petriscope.augment.geometry:QuarterTurn",
        "translate": "petriscope.augment.geometry:Translate",
        "rotate": "petriscope.augment.geometry:Rotate",
        "scale": "petriscope.augment.geometry:Scale",
        "shear": "petriscope.augment.geometry:Shear",
        "brightness": "petriscope.augment.color:Brightness",
        "contrast": "petriscope.augment.color:Contrast",
        "saturation": "petriscope.augment.color:Saturation",
        "hue": "petriscope.augment.color:Hue",
        "noise": "petriscope.augment.quality:Noise",
        "blur": "petriscope.augment.quality:Blur",
        "cutout": "petriscope.augment.occlusion:Cutout",
        "mixup": "petriscope.augment.mixing:MixUp",
        "cutmix": "petriscope.augment.mixing:CutMix",
    },
)
