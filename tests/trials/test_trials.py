"""What the fuzzer and the torture count as a problem, and that their damage is the same for the same seed."""

import random
from collections import Counter

import numpy as np
import pytest
from small_sources import make_npz, make_table, make_unsplit

from trials.lab import Outcome, leftovers
from trials.mutations import change, mutate
from trials.torture import contents, full_from

TRACEBACK = """Traceback (most recent call last):
  File "/x/src/petriscope/data/load.py", line 12, in load
    open(path)
  File "/usr/lib/python3.11/codecs.py", line 3, in decode
ValueError: no
"""
SENTENCE = "error: cells.npz is damaged: its header ends too early\n"


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(1, "", TRACEBACK, 0.1), "traceback at data/load.py:12: ValueError"),
        (Outcome(0, TRACEBACK, "", 0.1), "traceback at data/load.py:12: ValueError"),
        (Outcome(None, "", SENTENCE, 20.0, interrupted=True), "hangs"),
        (Outcome(-11, "", "", 0.1), "died by SIGSEGV"),
        (Outcome(-9, "", "", 0.1), "died by SIGKILL"),
        (Outcome(3, "", SENTENCE, 0.1), "exit status 3"),
        (Outcome(1, "", "", 0.1), "failed without a sentence"),
        (Outcome(0, "", "x.py:3: RuntimeWarning: divide by zero", 0.1), "RuntimeWarning: divide by zero"),
        (Outcome(130, "", "", 9.0), "exit status 130"),
    ],
)
def test_what_a_command_may_not_do_is_a_problem(outcome, problem):
    assert problem in outcome.problem()


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(0, "done\n", "", 0.1),
        Outcome(2, "", SENTENCE, 0.1),
        Outcome(1, "", SENTENCE, 0.1),
        Outcome(130, "", "interrupted\n", 11.0, interrupted=True),
    ],
)
def test_a_result_or_a_sentence_is_none(outcome):
    assert outcome.problem() == ""


def test_temporary_files_are_leftovers_and_others_are_not(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("run/.results.json.0a1b2c3d4e5f6a7b.tmp", ".new.kiihqi77", "run/results.json", "run/.lock", ".hidden"):
        (tmp_path / name).touch()
    assert leftovers(tmp_path) == [".new.kiihqi77", "run/.results.json.0a1b2c3d4e5f6a7b.tmp"]


def test_damage_is_a_function_of_the_seed_and_changes_the_file(tmp_path):
    changed = 0
    for seed in range(40):
        results = []
        for copy in ("a", "b"):
            folder = tmp_path / f"{seed}{copy}"
            sources = make_npz(folder), make_table(folder / "t"), *sorted(make_unsplit(folder / "u").rglob("*.png"))[:1]
            before = [path.read_bytes() for path in sources]
            rng = random.Random(seed)
            ways = [mutate(path, rng) for path in sources]
            after = [path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in sources]
            results.append((ways, [None if way == "arrays" else data for way, data in zip(ways, after, strict=True)]))
            changed += sum(one != two for one, two in zip(before, after, strict=True))
        assert results[0] == results[1]
    assert changed > 200  # of 240


def test_trees_are_changed_at_every_depth():
    tree = {"a": 1, "b": {"c": [1, 2, {"d": "x"}]}, "e": "text"}
    seen = Counter(repr(change(tree, random.Random(seed))) for seed in range(300))
    assert len(seen) > 100
    assert any("'d'" not in text and "'c'" in text for text in seen)
    assert tree == {"a": 1, "b": {"c": [1, 2, {"d": "x"}]}, "e": "text"}


def test_contents_leave_times_out_and_nothing_else(tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.5, "train_seconds": 3}')
    before = contents(tmp_path)
    (tmp_path / "results.json").write_text('{"accuracy": 0.5, "train_seconds": 4}')
    assert contents(tmp_path) == before
    (tmp_path / "results.json").write_text('{"accuracy": 0.6, "train_seconds": 4}')
    assert contents(tmp_path) != before


def test_a_full_disk_refuses_writing(tmp_path, monkeypatch):
    import builtins
    import io
    import os

    for place, name in (
        (builtins, "open"),
        (io, "open"),
        *((os, call) for call in ("fsync", "replace", "rename", "mkdir")),
    ):
        monkeypatch.setattr(place, name, getattr(place, name))  # restored after the test
    (tmp_path / "kept").touch()
    full_from(2)()
    (tmp_path / "one").write_text("1")
    with pytest.raises(OSError, match="No space left"):
        (tmp_path / "two").write_text("2")
    (tmp_path / "kept").unlink()
    assert np.array_equal([path.name for path in tmp_path.iterdir()], ["one"])
