"""Suspect masks in a set that is audited."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from petriscope.audit.runner import audit


def test_suspect_masks_are_found(tmp_path: Path) -> None:
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
    assert found.summary["groups"]["shared_mask"] == 2
