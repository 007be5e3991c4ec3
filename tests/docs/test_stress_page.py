"""The page of the stress test says what the code does."""

from pathlib import Path

import make_stress as maker
import pytest
from PIL import Image

from petriscope.augment.corruptions import CORRUPTIONS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_its_command_writes():
    assert (DOCS / "stress.md").read_text(encoding="utf-8") == maker.page(), "run python docs/make_stress.py"


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_every_corruption_is_told_and_shown(name):
    section = (DOCS / "stress.md").read_text(encoding="utf-8").partition(f"**{name}**")[2].partition("\n**")[0]
    assert all(f"{level:g}" in section for level in CORRUPTIONS[name].levels)
    with Image.open(DOCS / "images" / f"stress-{name}.png") as strip:
        assert strip.size == (6 * (maker.SIDE + maker.GAP) - maker.GAP, maker.SIDE)


def test_the_images_are_small():
    assert sum(path.stat().st_size for path in (DOCS / "images").glob("stress-*.png")) < 400_000
