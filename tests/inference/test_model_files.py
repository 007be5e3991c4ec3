"""Model files that are damaged, foreign or forged: one sentence that names the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.inference.predictor import load_model
from petriscope.models.weights import read_weights

SOUND = Path(__file__).parents[1] / "runs_of_0_1" / "classification" / "model.safetensors"
with safe_open(SOUND, framework="pt") as handle:
    FACTS = json.loads(handle.metadata()["petriscope"])
    TENSORS = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
FIRST = next(key for key, tensor in TENSORS.items() if tensor.is_floating_point())


def write(path: Path, facts=FACTS, tensors=TENSORS) -> Path:
    save_file(tensors, path, metadata={"petriscope": facts if isinstance(facts, str) else json.dumps(facts)})
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"mean": None}, {"std": None}, {"mean": []}, {"std": [0.0]}, {"mean": [0.5] * 9}, {"mean": [float("nan")] * 3},
        {"std": ["x"]}, {"shape": [8, 8]}, {"shape": [8, 8, 0]}, {"shape": [-8, 8, 1]}, {"shape": [10**9, 10**9, 1]},
        {"shape": None}, {"classes": []}, {"classes": None}, {"classes": ["a"]}, {"classes": "ab"}, {"classes": [1, 2]},
        {"recipe": None}, {"recipe": []}, {"recipe": {"model": "no-such-model"}}, {"recipe": {"modell": "x"}},
        {"recipe": {"model": {"name": "simple-cnn", "widths": [10**9, 8, 8]}}},
        {"recipe": {"model": {"name": "simple-cnn", "widths": [10**18, 10**18, 8]}}},
        {"recipe": {"model": {"name": "simple-cnn", "widths": [-1, 8, 8]}}},
        {"recipe": {"model": {"name": "unet", "widths": [4, 8]}}},
        {"format": None}, {"format": 99}, {"format": "x"}, {"format": 0}, {"task": "no-such-task"}, {"task": 3},
        {"trust": []}, {"trust": {}}, {"trust": {"references": [], "detector": None}}, {"trust": "x"},
    ],
)  # fmt: skip
def test_odd_facts_are_named_with_the_file(tmp_path, change):
    path = write(tmp_path / "m.safetensors", {**FACTS, **change})
    with pytest.raises(RequestError, match=r"m\.safetensors") as caught:
        load_model(path, "cpu")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("facts", ["", "{", "[]", "null", "{}", '{"format": 1e999}', "[" * 5000, "\u0000", "9" * 5000])
def test_metadata_that_are_no_object_are_named(tmp_path, facts):
    path = write(tmp_path / "m.safetensors", facts)
    for read in (load_model, read_weights):
        try:
            read(path)
        except PetriscopeError as error:
            assert "m.safetensors" in str(error)
        else:
            assert read is read_weights and facts == "{}"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "missing"),
        ({**TENSORS, "more": torch.zeros(2)}, "unexpected: more"),
        ({**TENSORS, FIRST: torch.zeros(3, 3)}, "of another shape"),
        ({**TENSORS, FIRST: TENSORS[FIRST].long()}, "of another type"),
        ({**TENSORS, FIRST: torch.full_like(TENSORS[FIRST], float("nan"))}, f"{FIRST} has numbers that are not finite"),
        ({**TENSORS, FIRST: torch.full_like(TENSORS[FIRST], float("inf"))}, "not finite"),
    ],
)
def test_tensors_that_are_not_those_of_the_model_are_named(tmp_path, tensors, says):
    with pytest.raises(RequestError, match=rf"m\.safetensors .*{says}"):
        load_model(write(tmp_path / "m.safetensors", tensors=tensors), "cpu")


def test_a_finite_tensor_whose_sum_is_not_is_read(tmp_path):
    tensors = {**TENSORS, FIRST: torch.full_like(TENSORS[FIRST], 3e38)}
    assert load_model(write(tmp_path / "m.safetensors", tensors=tensors), "cpu").classes


def places(tree, before=()):
    if before:
        yield before
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*before, key))


PLACES = list(places({key: FACTS[key] for key in FACTS if key not in ("environment", "training")}))
VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}) | st.just([[1]])


@settings(max_examples=40)
@given(st.sampled_from(PLACES), VALUES)
def test_one_odd_fact_is_refused_by_name_or_predicts(tmp_path_factory, place, value):
    facts = json.loads(json.dumps(FACTS))
    node = facts
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    path = write(tmp_path_factory.getbasetemp() / "odd.safetensors", facts)
    try:
        predictor = load_model(path, "cpu")
        predictor.predict(np.zeros((1, *predictor.shape), np.uint8), "none")
    except PetriscopeError as error:
        assert str(error)


def test_a_damaged_file_is_named(tmp_path):
    data, rng, path = SOUND.read_bytes(), random.Random(0), tmp_path / "m.safetensors"
    for _ in range(30):
        start = rng.randrange(4000)
        path.write_bytes(data[:start] + rng.randbytes(rng.randrange(12)) + data[start + rng.randrange(12) :])
        for read in (lambda: load_model(path, "cpu"), lambda: read_weights(path)):
            try:
                read()
            except PetriscopeError as error:
                assert "m.safetensors" in str(error)
