"""Augmentation of whole batches, each image with its own draw.

`AUGMENTATIONS` lists what a recipe can name; `Pipeline` runs a list of them. The maps of all
geometric operations are multiplied into one matrix per image, so a batch is resampled once; likewise those of color.
"""

from petriscope.core.registry import Registry

AUGMENTATIONS = Registry(
    "augmentation",
    {
        "flip": "petriscope.augment.geometry:Flip",
        "quarter-turn": "petriscope.augment.geometry:QuarterTurn",
        "translate": "petriscope.augment.geometry:Translate",
        "rotate": "petriscope.augment.geometry:Rotate",
        "scale": "petriscope.augment.geometry:Scale",
        "shear": "petriscope.augment.geometry:Shear",
        "crop-around": "petriscope.augment.crop_around:CropAround",
        "brightness": "petriscope.augment.color:Brightness",
        "contrast": "petriscope.augment.color:Contrast",
        "saturation": "petriscope.augment.color:Saturation",
        "hue": "petriscope.augment.color:Hue",
        "stain-jitter": "petriscope.augment.stain:StainJitter",
        "absorbance-jitter": "petriscope.augment.stain:AbsorbanceJitter",
        "noise": "petriscope.augment.noise_and_blur:Noise",
        "blur": "petriscope.augment.noise_and_blur:Blur",
        "amplitude-mix": "petriscope.augment.frequency:AmplitudeMix",
        "spectrum-jitter": "petriscope.augment.frequency:SpectrumJitter",
        "random-convolution": "petriscope.augment.random_convolution:RandomConvolution",
        "pattern-mix": "petriscope.augment.pattern:PatternMix",
        "posterize": "petriscope.augment.tone:Posterize",
        "solarize": "petriscope.augment.tone:Solarize",
        "invert": "petriscope.augment.tone:Invert",
        "equalize": "petriscope.augment.tone:Equalize",
        "auto-contrast": "petriscope.augment.tone:AutoContrast",
        "sharpness": "petriscope.augment.tone:Sharpness",
        "cutout": "petriscope.augment.occlusion:Cutout",
        "random-erasing": "petriscope.augment.occlusion:RandomErasing",
        "coarse-dropout": "petriscope.augment.occlusion:CoarseDropout",
        "hide-patches": "petriscope.augment.occlusion:HidePatches",
        "grid-mask": "petriscope.augment.occlusion:GridMask",
        "disc-mask": "petriscope.augment.occlusion:DiscMask",
        "corruption-mix": "petriscope.augment.corruption_mix:CorruptionMix",
        "wide-mix": "petriscope.augment.wide_mix:WideMix",
        "rand-augment": "petriscope.augment.policies:RandAugment",
        "trivial-augment": "petriscope.augment.policies:TrivialAugment",
        "aug-mix": "petriscope.augment.policies:AugMix",
        "mixup": "petriscope.augment.mixing:MixUp",
        "cutmix": "petriscope.augment.mixing:CutMix",
        "copy-paste": "petriscope.augment.mixing:CopyPaste",
    },
)
