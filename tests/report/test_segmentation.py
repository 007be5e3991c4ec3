"""The sections on masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from petriscope.core.masks import IGNORE
from petriscope.core.results import Evaluation
from petriscope.report.segmentation import SegmentationView, headline, overlays, view
from petriscope.report.wording import NONE
from petriscope.tasks import find_task

TASK = find_task("segmentation")
PER_CLASS = {
    "soil": {"pixels": 90, "iou": 0.75, "iou_ci95": [0.5, 0.875], "precision": 1.0, "recall": 0.75, "f1": 0.875},
    "rock": {"pixels": 10, "iou": 0.25, "iou_ci95": [None, None], "precision": 0.5, "recall": 0.5, "f1": 0.5},
    "sky": {"pixels": 0, "iou": None, "precision": None, "recall": None, "f1": None},
}


def evaluation(**changes: Any) -> Evaluation:
    facts = {"miou": 0.5, "miou_ci95": [0.25, 0.75], "confusion": [[81, 9, 0], [5, 5, 0], [0, 0, 0]]}
    tree = {"task": "segmentation", "split": "val", "n": 4, "per_class": PER_CLASS, **facts, **changes}
    return Evaluation.model_validate(tree)


def view_of(found: Evaluation, gallery: dict[str, np.ndarray]) -> SegmentationView:
    return view(TASK, "val", found, "run", pd.DataFrame({"split": []}), gallery)


def test_the_headline_counts_the_classes_that_are_there():
    found = headline(TASK, "val", evaluation())
    assert found.big == "50.00 %"
    assert "mean IoU over 2 classes on 4 val images (95 % interval 25.0 to 75.0)." in found.rest
    assert "Lowest IoU: rock, 25.00 %." in found.rest


def test_a_class_without_pixels_has_no_metrics():
    soil, rock, sky = view_of(evaluation(), {}).per_class
    assert soil.iou == "75.00 % (50.0 to 87.5)" and rock.iou == "25.00 %"
    assert (sky.pixels, sky.iou, sky.mark, sky.f1) == ("0", NONE, "", NONE)


def test_rows_of_the_matrix_are_shares_of_the_true_class():
    soil, rock, sky = view_of(evaluation(), {}).matrix
    assert [cell.share for cell in soil.cells] == ["90.0 %", "10.0 %", "0"] and soil.total == "90"
    assert [cell.hit for cell in rock.cells] == [False, True, False]
    assert [cell.share for cell in sky.cells] == ["0", "0", "0"]


@pytest.mark.parametrize("confusion", [None, [[1]]])
def test_a_matrix_that_does_not_fit_is_left_out(confusion):
    assert view_of(evaluation(confusion=confusion), {}).matrix == []


def test_many_classes_have_no_matrix_but_words():
    names = [f"class {k}" for k in range(70)]
    confusion = np.diag(np.full(70, 100))
    confusion[3, 5] = 25
    found = view_of(evaluation(per_class={name: {"pixels": 100} for name in names}, confusion=confusion.tolist()), {})
    assert found.matrix == []
    assert found.confusions == ["class 3 predicted as class 5: 25 of 125 (20.0 %)"]


def test_examples_need_images_and_masks_alone():
    masks = np.zeros((2, 6, 8), dtype=np.uint8)
    gallery = {"segments_val_images": np.zeros((2, 6, 8, 1), dtype=np.uint8), "segments_val_predicted": masks}
    assert view_of(evaluation(), gallery).examples == []
    gallery["segments_val_truth"] = masks + IGNORE
    first, _ = view_of(evaluation(), gallery).examples
    assert [title for title, _ in first.panels] == ["image", "truth", "predicted", "errors"]
    assert (first.id, first.metric, first.rank) == ("", "", "")
    gallery |= {"segments_val_miou": np.array([0.25, 0.5]), "segments_val_confidence": masks}
    first, _ = view_of(evaluation(), gallery).examples
    assert first.metric == "25.0 %" and first.panels[-1][0] == "confidence"


def test_runs_that_kept_no_augmented_masks_have_no_overlays():
    images = np.zeros((2, 3, 6, 8, 1), dtype=np.uint8)
    assert overlays({"augmented": images}, 3) == ()
    drawn = overlays({"augmented": images, "augmented_masks": np.ones((2, 3, 6, 8), dtype=np.uint8)}, 3)
    assert [[image.shape for image in row] for row in drawn] == [[(6, 8, 3)] * 3] * 2
