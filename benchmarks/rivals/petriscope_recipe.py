"""A recipe of Petriscope, with settings, for labels or masks."""

import json  # benchmark

import masks_petriscope_auto
import petriscope_auto

import petriscope


def train(images, work, seconds, seed, name, *settings):
    recipe = petriscope.load_recipe(name, settings, data={"source": str(images)}, seed=seed)
    petriscope.train(recipe, out=work / "run")


def predict(test, work):
    task = json.loads((work / "run" / "results.json").read_text())["task"]
    return (masks_petriscope_auto if task == "segmentation" else petriscope_auto).predict(test, work)
