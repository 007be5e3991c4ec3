"""A recipe of Petriscope, with settings, for labels or masks."""

import masks_petriscope_auto
import petriscope_auto

import petriscope


def train(images, work, seconds, seed, name, *settings):
    recipe = petriscope.load_recipe(name, settings, data={"source": str(images)}, seed=seed)
    petriscope.train(recipe, out=work / "run")


def predict(test, work):
    dense = (work / "run" / "results.json").read_text().find('"miou"') >= 0
    return (masks_petriscope_auto if dense else petriscope_auto).predict(test, work)
