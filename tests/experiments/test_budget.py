"""Lengths of trainings are pure functions of measured times, so they are checked with made-up ones."""

import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core import launch
from petriscope.core.errors import RequestError
from petriscope.experiments.auto import AutoPlan, _Keeper
from petriscope.experiments.budget import EPOCH, FEWEST, Budget, Clock, Load, Pace, best, corrected, enough, longest

seconds = st.floats(1e-4, 20)
loads = st.builds(
    Load,
    train=st.integers(1, 2_000_000),
    val=st.integers(0, 300_000),
    batch=st.sampled_from([8, 32, 128]),
    share=st.sampled_from([0.0, 0.5, 0.6]),
    pace=st.builds(Pace, step=seconds, small=seconds, predict=st.floats(1e-6, 0.1)),
)


@given(loads, st.floats(1, 1e5), st.floats(1, 400))
def test_what_is_planned_fits_into_the_time_or_is_a_single_step(load, limit, passes):
    found = longest(load, limit, passes)
    assert found.seconds == pytest.approx(load.seconds(found.epochs, found.images))
    assert found.epochs >= 1
    assert found.images >= 1
    single = found.epochs == 1 and load.steps(found.images) == 1
    assert single or found.seconds <= limit * (1 + 1e-9)
    assert single or found.passes <= max(passes, 1) + max(1, found.images / load.train)


@given(loads, st.floats(1, 1e5), st.floats(1, 400))
def test_the_time_is_used_where_more_passes_are_wanted(load, limit, passes):
    found = longest(load, limit, passes)
    if found.passes < 0.9 * passes and found.epochs >= FEWEST:
        longer = load.seconds(found.epochs + 1, found.images)
        more = load.seconds(found.epochs, found.images + load.batch)
        assert max(longer, more) > limit


def test_few_images_are_repeated_within_an_epoch_and_of_many_an_epoch_has_a_part():
    pace = Pace(0.1, 0.1, 1e-4)
    few = longest(Load(14, 3, 8, 0.0, pace), 60, 100)
    assert few.images == 6 * 14
    assert few.passes >= 100
    many = longest(Load(1_000_000, 1000, 128, 0.0, pace), 600, 3)
    assert many.epochs == FEWEST
    assert many.images < 1_000_000 / FEWEST
    assert many.seconds == pytest.approx(600, rel=0.03)


def test_the_first_of_the_most_accurate_that_has_time_enough_is_taken_or_the_closest():
    def lengths(*passes):
        load = Load(1000, 0, 100, 0.0, Pace(1, 1, 1))
        return [replace(longest(load, 10, 1), passes=each) for each in passes]

    assert best(lengths(3, 20, 90), [20, 10, 5]) == 1
    assert best(lengths(3, 4, 2), [20, 10, 5]) == 1
    assert enough(12, 10_000) == 12
    assert enough(12, 1_000) > 30 > enough(12, 5_000)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_a_budget_is_a_number_of_minutes(minutes):
    with pytest.raises(RequestError, match="more than 0"):
        Budget(minutes)


def test_a_clock_counts_wall_or_processors():
    wall, processor = Clock(Budget(1)), Clock(Budget(1, processor=True))
    sum(range(3_000_000))
    assert wall.spent > 0
    assert 0 < processor.spent <= processor.processor
    assert wall.left < 60


class Machine:
    """A clock that a made-up training drives, whose steps take ``slower`` times as long as was measured."""

    def __init__(self, minutes):
        self.budget, self.spent = Budget(minutes), 0.0


@given(st.floats(0.25, 5), st.floats(0.6, 1.7), st.floats(1, 30), st.sampled_from([0.0, 0.5]), st.integers(200, 20_000))
def test_a_training_on_a_slower_or_faster_machine_ends_in_time(slower, later, minutes, share, train):
    load = Load(train, 200, 64, share, Pace(0.2, 0.1, 1e-4))
    clock = Machine(minutes)
    budget = clock.budget.seconds
    clock.spent, after, certain = 0.1 * budget, 0.1 * budget, 0.03 * budget
    length = longest(load, 0.77 * budget, 60)
    most = longest(load, 1e9, 180).epochs
    plan = AutoPlan(None, (), (), None, load, length, after, most, fixed=False, certain=certain)
    settings = SimpleNamespace(epochs=length.epochs, ended=None)
    trainer = SimpleNamespace(at=SimpleNamespace(epoch=0, batch=0), settings=settings, recipe="r")
    trainer.correct = lambda epochs: setattr(trainer.settings, "epochs", epochs)
    run = SimpleNamespace(write_recipe=lambda recipe: None)
    keeper = _Keeper(run, trainer, plan, clock, quiet=True)
    middle, at, steps, factor = length.epochs / 2, trainer.at, load.steps(length.images), slower
    while at.epoch < settings.epochs and settings.ended is None:
        factor = slower * (later if at.epoch >= middle else 1)
        small = at.epoch < int(share * settings.epochs)
        while at.batch < steps:
            clock.spent += factor * (load.pace.small if small else load.pace.step)
            at.batch += 1
            if at.batch < steps and keeper.is_late():
                settings.ended, settings.epochs = SimpleNamespace(steps=at.batch), at.epoch + 1
                break
        clock.spent += factor * load.after_epoch
        at.epoch, at.batch = at.epoch + 1, 0
        keeper.look()
    end = clock.spent + certain * max(1, factor)
    assert end <= 1.2 * budget
    if later == 1 and settings.ended is None and at.epoch < most and slower > 0.5:
        assert clock.spent + after * max(1, slower) >= 0.85 * budget - slower * load.seconds(1, length.images)


def test_a_step_that_others_delayed_does_not_end_a_training():
    load, clock = Load(1000, 0, 100, 0.0, Pace(0.1, 0.1, 1e-4)), Machine(1)
    plan = AutoPlan(None, (), (), None, load, longest(load, 30, 20), 6.0, 40, fixed=False, certain=5.0)
    trainer = SimpleNamespace(at=SimpleNamespace(epoch=0, batch=1), settings=SimpleNamespace(epochs=20, ended=None))
    keeper = _Keeper(None, trainer, plan, clock, quiet=True)
    for delayed in (1.1, 5.0):  # seconds, where the first step should have taken 0.1
        clock.spent = delayed
        assert not keeper.is_late()
    trainer.at.batch, clock.spent = 6, 30.0  # and all fifty times: what follows would take longer than there is time
    assert keeper.is_late()


def test_a_delay_in_a_short_epoch_does_not_shorten_a_training_for_good():
    """An epoch of 0.3 s, of a budget of a minute, took 5 s."""
    load, clock = Load(1000, 0, 100, 0.0, Pace(0.025, 0.025, 1e-4)), Machine(1)
    length = longest(load, 40, 200)
    plan = AutoPlan(None, (), (), None, load, length, 6.0, 200, fixed=False, certain=5.0)
    settings = SimpleNamespace(epochs=length.epochs, ended=None)
    trainer = SimpleNamespace(at=SimpleNamespace(epoch=0, batch=0), settings=settings, recipe="r")
    trainer.correct = lambda epochs: setattr(settings, "epochs", epochs)
    keeper = _Keeper(SimpleNamespace(write_recipe=lambda recipe: None), trainer, plan, clock, quiet=True)
    epoch = load.seconds(1, length.images)
    while trainer.at.epoch < settings.epochs:
        clock.spent += 5.0 if trainer.at.epoch == 0 else epoch
        trainer.at.epoch += 1
        keeper.look()
    assert length.epochs * epoch * 0.7 < clock.spent < 54


def test_what_there_is_time_for_after_some_epochs():
    load = Load(1000, 0, 100, 0.0, Pace(1, 1, 1))
    length = replace(longest(load, 1e6, 20), images=1000)
    assert corrected(load, length, 3, 1.0, 5 * (10 + EPOCH) + 1, 40) == 8
    assert corrected(load, length, 3, 2.0, 5 * (10 + EPOCH) + 1, 40) == 5
    assert corrected(load, length, 3, 1.0, -1, 40) == 3
    assert corrected(load, length, 3, 1.0, 1e9, 40) == 40


def test_a_command_counts_from_its_beginning_and_only_until_its_end():
    with launch.command():
        began = launch.beginning()
        time.sleep(0.02)
        assert launch.beginning() == began
        assert Clock.of_command(Budget(1)).wall >= 0.02
    assert launch.beginning()[0] >= began[0] + 0.02


def test_what_a_notebook_started_before_its_command_is_not_counted():
    subprocess.run([sys.executable, "-c", "sum(range(6_000_000))"], check=True)
    assert launch.processor_time() > time.process_time()
    assert Clock.of_command(Budget(1, processor=True)).processor < 0.02
