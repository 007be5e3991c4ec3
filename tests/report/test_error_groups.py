"""The sections on errors and explanations: what they say of metrics made by hand, and of what is missing."""

import numpy as np
import pandas as pd

from petriscope.report.error_groups import errors
from petriscope.report.explanations import Shown, looks, write_page

IMAGES = np.zeros((2, 8, 8, 3), dtype=np.uint8)


def group(name, n, accuracy, p=1.0, p_within=1.0, **more):
    ci95 = [accuracy - 0.05, min(accuracy + 0.05, 1.0)]
    return {"name": name, "low": 0.0, "high": 0.5, "color": None, "n": n, "accuracy": accuracy, "ci95": ci95} | {
        "rest": 0.9,
        "p": p,
        "p_within": p_within,
        **more,
    }


def metrics(groups=(), neighbors=None, pairs=()):
    listed = [{"name": "size", "about": "of it", "groups": list(groups)}] if groups else []
    return {"test": {"n": 300, "errors": {"pairs": list(pairs), "groups": listed, "neighbors": neighbors}}}


def test_a_group_is_marked_by_what_the_tests_say():
    rows = [group("a", 100, 0.8, 0.001, 0.002), group("b", 100, 0.8, 0.001, 0.4), group("c", 100, 0.95, 0.01, 0.01)]
    rows.append(group("d", 100, 0.88))
    (view,) = errors(["test"], metrics(rows), {})
    a, b, c, d = view.attributes[0].groups
    assert a.note == "10.0 points below the rest, also class by class (p = 0.002)" and a.worse
    assert b.note == "10.0 points below the rest (p = 0.001), but not class by class: it holds other classes"
    assert "5.0 points above the rest" in c.note and not c.worse
    assert d.note == "" and d.range == "0 to 50 %"
    assert view.summary == "3 of the 4 groups differ from the rest beyond chance."


def test_none_and_one_group_in_words():
    assert "None of the 1 groups" in errors(["test"], metrics([group("a", 10, 0.9)]), {})[0].summary
    assert errors(["test"], metrics([group("a", 10, 0.9, 0.01, 0.01)]), {})[0].summary.startswith(
        "1 of the 1 groups differs"
    )
    assert errors(["test"], {"test": {"n": 3}}, {}) == []


def test_neighbors_that_all_agree_raise_the_question():
    def mistake(labels):
        row = {"id": "test/3", "true": "a", "predicted": "b", "confidence": 0.9, "labels": labels}
        return row | {"ids": ["train/1", "train/2"], "similarity": [0.99, 0.9]}

    beside = {"among": 50, "of": 200, "mistakes": [mistake(["b", "b"]), mistake(["b", "a"])]}
    gallery = {"neighbors_test": np.zeros((2, 3, 8, 8, 3), dtype=np.uint8)}
    (view,) = errors(["test"], metrics(neighbors=beside), gallery)
    assert view.among == "50 of the 200 training images"
    assert view.mistakes[0].words == "All of them are labeled b, as predicted: is the label a right?"
    assert view.mistakes[1].words == "Labels: 1 b, 1 a."
    assert errors(["test"], metrics(neighbors=beside), {})[0].mistakes == []


def test_pairs_keep_their_own_images():
    pairs = [
        {"true": "a", "predicted": "b", "count": 2, "n": 10, "ids": ["test/1", "test/2"]},
        {"true": "b", "predicted": "a", "count": 1, "n": 8, "ids": ["test/3"]},
    ]
    images = np.stack([np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (10, 20, 30)])
    (view,) = errors(["test"], metrics(pairs=pairs), {"confused_test": images})
    assert [len(pair.examples) for pair in view.pairs] == [2, 1]
    assert view.pairs[1].examples[0][1] == "test/3"
    assert view.pairs[1].examples[0][0].uri not in {p.uri for p, _ in view.pairs[0].examples}
    assert view.pairs[0].words == "2 of 10 (20.0 %)"


PREDICTIONS = pd.DataFrame(
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


def test_a_wrong_image_has_a_map_for_each_class_and_missing_checks_are_told():
    facts = {
        "method": "hires-cam",
        "ids": ["test/0", "test/1"],
        "check": None,
        "reason": "it is too costly",
        "left_out": [],
    }
    (view,) = looks(["test", "val"], {"test": {"explanations": facts}}, GALLERY, PREDICTIONS)
    (right,), (wrong,) = view.right, view.wrong
    assert [label for _, label in right.maps] == ["a"]
    assert [label for _, label in wrong.maps] == ["a", "b"]
    same = {**GALLERY, "explained_test_maps": MAPS[:, [0, 0]]}  # of a method that knows no classes
    assert len(looks(["test"], {"test": {"explanations": facts}}, same, PREDICTIONS)[0].wrong[0].maps) == 1
    assert view.verdict == "" and view.notes == ["How far they can be trusted was not checked: it is too costly."]


def test_without_images_or_predictions_there_are_no_cards():
    facts = {"method": None, "check": None, "reason": "no maps"}
    results = {"test": {"explanations": facts}}
    (view,) = looks(["test"], results, {}, PREDICTIONS)
    assert not view.right and view.notes == ["Maps cannot be shown: no maps."]
    assert not looks(["test"], results, GALLERY, pd.DataFrame({"split": []}))[0].wrong


def test_the_page_escapes_names_and_tells_of_unreadable_images(tmp_path):
    shown = [Shown(IMAGES[0], np.zeros((8, 8)), "<b>.png", "<i>a</i>", 0.75, "b & c")]
    write_page(tmp_path / "index.html", shown, "occlusion", "a/b", 3, ["x.png: cannot be read"])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<i>a</i>" not in text and "&lt;i&gt;a&lt;/i&gt;" in text and "b &amp; c" in text
    assert "The first 1 of 3 images" in text and "x.png: cannot be read" in text
    assert "http" not in text.replace("http-equiv", "")
