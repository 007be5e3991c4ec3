"""The variants that the benchmark of left-out families trains."""

from pathlib import Path

import pytest

from petriscope.augment.families import FAMILIES, recipe_without
from petriscope.experiments.suite import load_suite, plan
from petriscope.training.build import check_parts

SUITE = Path(__file__).parents[2] / "benchmarks" / "left_out.yaml"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_can_be_trained_without_each_family(family, tmp_path):
    for planned in plan(load_suite(SUITE), tmp_path, "synthetic-smear:80"):
        check_parts(recipe_without(planned.recipe, family))
