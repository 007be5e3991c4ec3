"""Findings about masks come as the table that labels have."""

from __future__ import annotations

import numpy as np

from petriscope.audit.mask_table import MASK_KINDS, mask_table
from petriscope.audit.runner import audit


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
    assert {name for name, _ in rows} == set(MASK_KINDS)
    assert [rows[key].decision for key in (("wrong_mask_values", "train/3"), ("empty_mask", "train/1"))] == [
        "drop",
        "review",
    ]
    assert rows["shared_mask", "train/6"].group == rows["shared_mask", "train/5"].group == "masks-1"
    assert "2 images" in rows["shared_mask", "train/6"].evidence


def test_a_set_with_masks_is_audited_like_any_other(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 12, 16), dtype=np.uint8)
    masks = rng.integers(0, 3, (24, 12, 16), dtype=np.uint8)
    masks[:6] = masks[0]
    masks[6], masks[7] = 255, 2
    masks[8] = masks[9]
    source = tmp_path / "masks.npz"
    np.savez(source, train_images=images, train_masks=masks)
    found = audit(source, labels=False, features=None)
    rows = {(row.finding, row.id.rpartition("/")[2]): row.decision for row in found.table.itertuples()}
    assert {key: rows[key] for key in rows if key[0] == "shared_mask"} == {
        **{("shared_mask", str(index)): "drop" for index in range(6)},
        ("shared_mask", "8"): "review",
        ("shared_mask", "9"): "review",
    }
    assert rows[("empty_mask", "6")] == rows[("single_class_mask", "7")] == "review"
    assert found.summary["findings"]["shared_mask"] == 8
    assert audit(source, labels=False, features=None).fingerprint == found.fingerprint
