"""Petriscope without a recipe, for labels."""

import petriscope


def train(images, work, seconds, seed):
    petriscope.train(data=images, processor_minutes=seconds / 60, seed=seed, out=work / "run")


def predict(test, work):
    table = petriscope.predict(work / "run", test)
    classes = [name for name in table.columns if name.startswith("p_")]
    return [name[2:] for name in classes], table.sort_values("image")[classes].to_numpy()
