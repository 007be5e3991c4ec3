"""A table of findings about masks alone."""

from __future__ import annotations

import numpy as np

from petriscope.audit import mask_table


def test_every_kind_of_fault_is_a_row() -> None:
    rng = np.random.default_rng(0)
    masks = list(rng.integers(0, 3, (8, 6, 5), dtype=np.uint8))
    masks[1][:] = 0
    masks[2][:] = 2
    masks[3][0, 0] = 77
    masks[4] = rng.integers(0, 3, (4, 5), dtype=np.uint8)
    masks[6] = masks[5].copy()
    ids = [f"train/{index}" for index in range(8)]
    table = mask_table(masks, 3, ids, ["train"] * 8)
    rows = {(row.finding, row.id): row for row in table.itertuples()}
    assert set(rows) == {
        ("wrong_mask_values", "train/3"),
        ("wrong_mask_size", "train/4"),
        ("empty_mask", "train/1"),
        ("single_class_mask", "train/2"),
        ("shared_mask", "train/5"),
        ("shared_mask", "train/6"),
    }
    assert [rows[key].decision for key in (("wrong_mask_values", "train/3"), ("empty_mask", "train/1"))] == [
        "drop",
        "review",
    ]
    assert rows["shared_mask", "train/6"].group == rows["shared_mask", "train/5"].group == "masks-1"
    assert "2 images" in rows["shared_mask", "train/6"].evidence
