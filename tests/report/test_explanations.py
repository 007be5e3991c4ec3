"""The section on explanations, and the page of explained image files."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pages import Page
from petriscope.core.results import Evaluation, Explanations, Results
from petriscope.explain.shown import Shown
from petriscope.report import classification, segmentation
from petriscope.report.explanations import Maps, checked, explanation_view, write_page

IMAGES = np.zeros((2, 8, 8, 3), dtype=np.uint8)
ROWS = pd.DataFrame(
    {
        "id": ["test/0", "test/1"],
        "split": "test",
        "target": ["a", "b"],
        "predicted": ["a", "a"],
        "confidence": [0.9, 0.8],
    }
)
MAPS = np.zeros((2, 2, 8, 8), dtype=np.uint8)
MAPS[:, 1, 2:4] = 255
GALLERY = {"explained_test": IMAGES, "explained_test_maps": MAPS}
FOUND = Explanations(method="hires-cam", ids=["test/0", "test/1"], reason="it is too costly")
OCCLUSION = {"over_random": 0.5, "over_random_ci95": [0.25, 0.75], "randomized": None}
CHECK = {
    "n": 40,
    "orders": {
        name: {"deletion": 0.25, "insertion": 0.75, "score": 0.5} for name in ("occlusion", "random", "blob", "region")
    },
    "methods": {"occlusion": {**OCCLUSION, "inside": 0.5, "verdict": "better", "trusted": True}},
}


def test_a_wrong_image_has_a_map_for_each_class():
    right, wrong = classification.maps("test", FOUND, ROWS, GALLERY).groups
    assert [label for card in right.cards for _, label in card.maps] == ["a"]
    assert [label for card in wrong.cards for _, label in card.maps] == ["a", "b"]
    same = {**GALLERY, "explained_test_maps": MAPS[:, [0, 0]]}  # by a method that does not depend on the class
    assert len(classification.maps("test", FOUND, ROWS, same).groups[1].cards[0].maps) == 1


def test_without_images_or_predictions_there_are_no_cards():
    assert classification.maps("test", FOUND, ROWS, {}) == Maps()
    assert classification.maps("test", FOUND, pd.DataFrame({"split": []}), GALLERY) == Maps()
    assert segmentation.maps("test", FOUND, ROWS, GALLERY) == Maps()


def test_masks_are_grouped_by_the_class_explained():
    masks = np.zeros((2, 8, 8), dtype=np.uint8)
    masks[1, :4] = 1
    gallery = {**GALLERY, "explained_test_maps": MAPS[:, 1], "explained_test_masks": masks}
    facts = {"of": ["a", "b"], "share": [1.0, 0.5], "confidence": [0.75, 0.5], "classes": ["a", "b"]}
    found = segmentation.maps("test", FOUND.model_copy(update=facts), ROWS, gallery)
    assert [(group.title, len(group.cards)) for group in found.groups] == [("a", 1), ("b", 1)]
    assert found.groups[1].cards[0].facts == [("share", "50.0 %"), ("confidence", "50.0 %")]
    assert [name for name, _ in found.legend] == ["a", "b"]


def test_what_was_not_checked_is_told():
    view = explanation_view("test", FOUND, Maps())
    assert view.verdict == "" and view.notes == ["Whether these maps can be trusted was not checked: it is too costly."]
    none = explanation_view("test", Explanations(method=None, reason="no maps"), Maps())
    assert none.notes == ["There are no maps: no maps."]


def test_the_table_of_checks_has_a_cell_per_column():
    for area in (None, 0.25):
        found = Explanations.model_validate({"method": "occlusion", "check": {**CHECK, "area": area}})
        view = explanation_view("test", found, Maps())
        assert view.trusted and view.verdict == "better"
        assert all(len(row.cells) + 1 == len(view.columns) for row in view.rows)
        assert "+0.50 (+0.25 to +0.75)" in view.rows[0].cells and view.rows[1].verdict == ""


def test_the_check_of_test_counts_more_than_that_of_val():
    def evaluation(split: str, n: int) -> Evaluation:
        check = {**CHECK, "n": n}
        return Evaluation.model_validate(
            {"split": split, "n": 50, "explanations": {"method": "occlusion", "check": check}}
        )

    results = Results(val=evaluation("val", 30), test=evaluation("test", 20))
    found = checked("occlusion", results)
    assert found is not None and (found.split, found.n, found.trusted) == ("test", 20, True)
    assert checked("grad-cam", results) is None and checked("occlusion", Results()) is None


def test_the_page_escapes_names_and_tells_of_unreadable_images(tmp_path):
    shown = [Shown(IMAGES[0], np.zeros((8, 8)), "<b>.png", "<i>a</i>", 0.75, "b & c")]
    write_page(tmp_path / "index.html", shown, "occlusion", "a/b", 3, ["x.png: cannot be read"])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    page.check_self_contained()
    assert not page.names & {"i", "b"} and "<i>a</i>" in page.text and "b & c" in page.text
    assert "The first 1 of 3 images" in page.text and "x.png: cannot be read" in page.text
    assert "http" not in text.replace("http-equiv", "")


def test_an_image_without_a_map_says_why(tmp_path):
    mask = np.zeros((8, 8), dtype=np.uint8)
    shown = [Shown(IMAGES[0], None, "a.png", "soil", None, "rock", mask, 0.0, "no pixel is predicted as rock")]
    write_page(tmp_path / "index.html", shown, "occlusion", "a/b", 1, [], classes=("soil", "rock"))
    assert "no pixel is predicted as rock" in Page((tmp_path / "index.html").read_text()).text
