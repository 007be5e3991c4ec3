"""The page of augmentations says what the registry says."""

from pathlib import Path

import make_augmentations as maker
from PIL import Image

from petriscope.augment import AUGMENTATIONS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_its_command_writes():
    written = (DOCS / "augmentations.md").read_text(encoding="utf-8")
    assert written == maker.page(), "run python docs/make_augmentations.py"


def test_every_augmentation_has_its_section_options_and_images():
    text = (DOCS / "augmentations.md").read_text(encoding="utf-8")
    for name in AUGMENTATIONS.members:
        section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert f"(images/augment-{name}.png)" in section
        for option in AUGMENTATIONS.options(name):
            assert f"| `{option}` |" in section
        with Image.open(DOCS / "images" / f"augment-{name}.png") as strip:
            assert strip.width > 8 * strip.height


def test_the_images_are_small():
    assert sum(path.stat().st_size for path in (DOCS / "images").glob("augment-*.png")) < 1_500_000


def test_strips_can_be_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(maker, "DOCS", tmp_path)
    (tmp_path / "images").mkdir()
    cells, labels = maker.eight_cells()
    assert labels.tolist() == list(range(8))
    maker.save(maker.augmented("rotate", cells, labels), "rotate")
    with Image.open(tmp_path / "images" / "augment-rotate.png") as strip:
        assert strip.size == (8 * 68 - 4, 64)
