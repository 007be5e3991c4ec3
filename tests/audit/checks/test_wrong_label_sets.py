"""Labels that are probably missing or wrong, where images may have any number of them."""

import numpy as np
from scipy.special import expit

from petriscope.audit.base import Listing
from petriscope.audit.checks.wrong_labels import findings_of_sets
from petriscope.audit.label_errors import find_binary_errors


def test_flipped_labels_are_found_and_named_and_left_to_a_person():
    rng = np.random.default_rng(0)
    true = (rng.random((400, 2)) < (0.5, 0.3)).astype(np.uint8)
    p = expit(4 * (2.0 * true - 1) + rng.normal(0, 1, true.shape)).astype(np.float32)
    given = true.copy()
    flipped = {*((row, 0) for row in range(20)), *((row, 1) for row in range(50, 70)), (200, 0), (200, 1)}
    for row, column in flipped:
        given[row, column] ^= 1
    found = [find_binary_errors(given[:, k], p[:, k]) for k in range(2)]
    names = np.array([", ".join(np.array(["cyst", "mass"])[row == 1]) or "none" for row in given], dtype=object)
    ids = np.array([f"{i}.png" for i in range(400)], dtype=object)
    findings = list(findings_of_sets(Listing(ids, np.full(400, "train", dtype=object), names), found, ("cyst", "mass")))
    assert {each.image for each in findings} == {row for row, _ in flipped}
    assert {each.decision for each in findings} == {"review"}
    both = next(each for each in findings if each.image == 200)
    assert f"labeled {names[200]}" in both.evidence and both.evidence.count("may be") == 2
    for row, name in ((3, "cyst"), (50, "mass")):
        (one,) = (each for each in findings if each.image == row)
        word = "wrong" if given[row, 0 if name == "cyst" else 1] else "missing"
        assert f"{name} may be {word}" in one.evidence
