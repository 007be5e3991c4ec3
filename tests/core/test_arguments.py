"""Arguments of the Python API that are of another kind, one sentence each."""

import inspect

import numpy as np
import pytest

from petriscope import api
from petriscope.core.arguments import CHOICES, FLAGS, NUMBERS, PATHS, TEXTS, WHOLE
from petriscope.core.errors import RequestError


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: api.predict("run", "images", tta="d8"), "tta must be one of none, mirror"),
        (lambda: api.calibrate("run", "d8"), "tta must be one of none, mirror"),
        (lambda: api.evaluate("run", "images", "tset"), "split must be one of train, val, test; got 'tset'"),
        (lambda: api.recalibrate("run", "images", split="tset"), "split must be one of"),
        (lambda: api.adapt("run", "images", split="tset"), "split must be one of"),
        (lambda: api.predict("run", "images", max_error="0.01"), "max_error must be a number; got '0.01'"),
        (lambda: api.train(data="images", minutes="20"), "minutes must be a number"),
        (lambda: api.predict("run", "images", out=3), "out must be a path"),
        (lambda: api.predict("run", "images", out=""), "out must be a path"),
        (lambda: api.predict_in_shards("run", "images", "out", "3"), "shards must be a whole number; got '3'"),
        (lambda: api.predict_in_shards("run", "images", "out", 3, 0), "jobs must be a whole number from 1; got 0"),
        (lambda: api.adapt("run", "images", seed="x"), "seed must be a whole number from 0"),
        (lambda: api.evaluate("run", "images", by=3), "by must be text"),
        (lambda: api.export("run", sample=0), "sample must be a whole number from 1; got 0"),
        (lambda: api.export_page("run", sample=-1), "sample must be a whole number from 1"),
        (lambda: api.serve([]), "name the models to serve"),
        (lambda: api.predict("", "images"), "an empty name stands where a path should"),
    ],
)
def test_an_argument_of_another_kind_is_one_sentence(call, said):
    with pytest.raises(RequestError, match=said):
        call()


def test_numbers_of_numpy_are_numbers():
    with pytest.raises(RequestError, match="no model at run"):
        api.predict("run", np.zeros((4, 4, 3), np.uint8), max_error=np.float32(0.1))
    with pytest.raises(RequestError, match="run is not a run folder"):
        api.adapt("run", "images", seed=np.int64(3))


def test_a_name_that_is_checked_is_an_argument_of_some_function():
    functions = [each for _, each in inspect.getmembers(api, inspect.isfunction)]
    known = {name for each in functions for name in inspect.signature(each).parameters}
    assert {*CHOICES, *NUMBERS, *WHOLE, *TEXTS, *PATHS, *FLAGS} <= known
