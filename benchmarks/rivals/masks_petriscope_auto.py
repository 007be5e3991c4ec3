"""Petriscope without a recipe, for masks."""

import shutil  # benchmark

import numpy as np
from PIL import Image
from shared import files

import petriscope


def train(images, work, seconds, seed):
    petriscope.train(data=images, processor_minutes=seconds / 60, seed=seed, out=work / "run")


def predict(test, work):
    shutil.rmtree(work / "masks", ignore_errors=True)  # benchmark
    petriscope.predict(work / "run", test, out=work / "masks")
    masks = [path for path in files(work / "masks") if not path.stem.endswith("-overlay")]
    return np.stack([np.asarray(Image.open(path)) for path in masks])
