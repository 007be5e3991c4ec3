"""The section on errors: what it says about metrics made by hand, and about what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.core.results import Evaluation
from petriscope.report.error_groups import errors


def group(name: str, n: int, accuracy: float, p: float = 1.0, p_within: float = 1.0) -> dict[str, Any]:
    ci95 = [accuracy - 0.05, min(accuracy + 0.05, 1.0)]
    facts = {"name": name, "low": 0.0, "high": 0.5, "color": None, "n": n, "accuracy": accuracy, "ci95": ci95}
    return {**facts, "rest": 0.9, "p": p, "p_within": p_within}


def evaluated(groups=(), neighbors=None, pairs=()) -> dict[str, Evaluation]:
    listed = [{"name": "size", "about": "of it", "groups": list(groups)}] if groups else []
    found = {"pairs": list(pairs), "groups": listed, "neighbors": neighbors}
    return {"test": Evaluation.model_validate({"split": "test", "n": 300, "errors": found})}


def test_a_group_is_marked_by_what_the_tests_say():
    rows = [group("a", 100, 0.8, 0.001, 0.002), group("b", 100, 0.8, 0.001, 0.4), group("c", 100, 0.95, 0.01, 0.01)]
    rows.append(group("d", 100, 0.88))
    (view,) = errors(evaluated(rows), {})
    a, b, c, d = view.attributes[0].groups
    assert a.note == "10.0 points below the rest, also within classes (p = 0.002)" and a.worse
    assert b.note.startswith("10.0 points below the rest (p = 0.001), but not within classes")
    assert "5.0 points above the rest" in c.note and not c.worse
    assert d.note == "" and d.range == "0 to 50 %"
    assert view.summary == "3 of the 4 groups differ from the rest beyond chance."


def test_a_color_is_written_as_hexadecimal():
    (view,) = errors(evaluated([{**group("a", 10, 0.9), "color": [255, 0, 16]}]), {})
    assert view.attributes[0].groups[0].color == "#ff0010"


def test_summaries():
    assert "None of the 1 groups" in errors(evaluated([group("a", 10, 0.9)]), {})[0].summary
    one = errors(evaluated([group("a", 10, 0.9, 0.01, 0.01)]), {})[0].summary
    assert one.startswith("1 of the 1 groups differs")
    assert errors(evaluated(), {})[0].summary == ""
    assert errors({"test": Evaluation(split="test", n=3)}, {}) == []


def test_neighbors_that_all_agree_raise_the_question():
    def mistake(labels: list[str]) -> dict[str, Any]:
        row = {"id": "test/3", "true": "a", "predicted": "b", "confidence": 0.9, "labels": labels}
        return {**row, "ids": ["train/1", "train/2"], "similarity": [0.99, 0.9]}

    found = evaluated(neighbors={"among": 50, "of": 200, "mistakes": [mistake(["b", "b"]), mistake(["b", "a"])]})
    (view,) = errors(found, {"neighbors_test": np.zeros((2, 3, 8, 8, 3), dtype=np.uint8)})
    assert view.among == "50 of the 200 training images"
    assert "Is the label a correct?" in view.mistakes[0].labels
    assert view.mistakes[1].labels == "Labels of the neighbors: 1 × b, 1 × a."
    assert errors(found, {})[0].mistakes == []


def test_pairs_keep_their_own_images():
    pairs = [
        {"true": "a", "predicted": "b", "count": 2, "n": 10, "ids": ["test/1", "test/2"]},
        {"true": "b", "predicted": "a", "count": 1, "n": 8, "ids": ["test/3"]},
    ]
    images = np.stack([np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (10, 20, 30)])
    (view,) = errors(evaluated(pairs=pairs), {"confused_test": images})
    assert [len(pair.examples) for pair in view.pairs] == [2, 1]
    assert view.pairs[1].examples[0][1] == "test/3"
    assert view.pairs[1].examples[0][0].uri not in {p.uri for p, _ in view.pairs[0].examples}
    assert view.pairs[0].frequency == "2 of 10 (20.0 %)"
