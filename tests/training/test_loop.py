"""The loop as a whole: repeatable, resumable, and doing what the recipe says."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from petriscope import api
from petriscope.core.errors import Interrupted, PetriscopeError, RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.data.appearance import background
from petriscope.data.sampler import epoch_order
from petriscope.run.folder import Run, open_run
from petriscope.tasks.classification import Classification
from petriscope.training.build import build_trainer
from petriscope.training.checkpoints import load_checkpoint, save_checkpoint
from petriscope.training.loop import Trainer


def weights(run: Run):
    return load_file(run.model)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def learned(run: Run):
    """The history without times."""
    return [(line.epoch, line.train, line.val, line.lr) for line in run.history]


def test_one_recipe_and_seed_give_the_same_weights_and_another_seed_others(tiny_recipe, tmp_path):
    first = api.train(tiny_recipe(), tmp_path / "a", quiet=True)
    again = api.train(tiny_recipe(), tmp_path / "b", quiet=True)
    other = api.train(tiny_recipe(seed=1), tmp_path / "c", quiet=True)
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


VARIANTS = {
    "sgd, clipped, penalized": {
        "optimizer": {"name": "sgd", "lr": 0.05},
        "training": {"clip_grad_norm": 1, "l1": 1e-4, "l2": 1e-3},
    },
    "plateau, last": {"schedule": {"name": "plateau", "patience": 1}, "training": {"keep": "last"}},
    "no averaging, oversampled": {"training": {"ema": None}, "sampler": "oversample"},
    "bf16, weighted": {
        "training": {"precision": "bf16"},
        "sampler": "weighted",
        "loss": {"name": "cross-entropy", "class_weights": "balanced"},
    },
    "mixed": {"augment": [{"name": "mixup", "alpha": 0.4}, "cutmix", "rand-augment"]},
    "mean of the last epochs": {"training": {"swa": 0.6}},
    "in stages": {"finetune": {"train": "head", "lr_decay": 0.5, "then": [{"epoch": 1, "train": "all", "lr": 0.3}]}},
    "head alone, backbone run once": {"finetune": {"train": "head"}, "augment": []},
    "a loss of its own": {"model": {"name": "autoencoder", "widths": [4, 8], "hidden": 8}},
    "smaller images first": {
        "model": {"name": "se-cnn", "widths": [4, 8], "depths": [1, 1], "pool": False},
        "training": {"progressive": {"size": 6, "share": 0.7}},
    },
    "longer than planned, smaller images first": {
        "model": {"name": "se-cnn", "widths": [4, 8], "depths": [1, 1], "pool": False},
        "training": {"corrections": [{"epoch": 1, "before": 2}], "progressive": {"size": 6, "share": 0.7}},
    },
    "shorter than planned, plateau": {
        "schedule": {"name": "plateau", "patience": 1},
        "training": {"corrections": [{"epoch": 1, "before": 9}, {"epoch": 2, "before": 4}]},
    },
    "muon": {"optimizer": {"name": "muon", "lr": 0.01}},
    "views": {"augment": ["flip", "aug-mix"], "loss": {"name": "consistency", "views": 1}},
    "noise, blur, color": {"augment": ["noise", "blur", "hue", "contrast", {"name": "rotate", "degrees": 20}]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_after_any_step_it_ends_the_same(variant, tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe(**VARIANTS[variant])
    whole = api.train(recipe, tmp_path / "whole", quiet=True)

    steps = Trainer.train_step
    for number, stop_at in enumerate((1, 8, 17)):
        count = iter(range(1000))

        def killed(self, images, targets, stop_at=stop_at, count=count):
            if next(count) == stop_at:
                raise RuntimeError("killed")
            return steps(self, images, targets)

        folder = tmp_path / f"broken{number}"
        monkeypatch.setattr(Trainer, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            api.train(recipe, folder, quiet=True)
        monkeypatch.setattr(Trainer, "train_step", steps)
        resumed = api.resume(folder, quiet=True)
        assert same(weights(resumed), weights(whole))
        assert learned(resumed) == learned(whole)


@pytest.mark.parametrize("lengths", [(2, 6), (6, 3), (5, 2), (4, 7, 5)], ids=str)
def test_what_was_corrected_while_training_is_in_the_recipe_that_leads_to_the_same_weights(lengths, tiny_recipe):
    model = {"name": "se-cnn", "widths": [4, 8], "depths": [1, 1], "pool": False}
    recipe = tiny_recipe(model=model, training={"epochs": lengths[0], "progressive": {"size": 6, "share": 0.7}})
    dataset = load_dataset(recipe.data)

    def train(recipe, corrected=()):
        trainer, _ = build_trainer(recipe, dataset, torch.device("cpu"), quiet=True)
        corrections = dict(enumerate(corrected, 1))
        trainer.on_epoch = lambda history: (
            trainer.correct(corrections[len(history)]) if len(history) in corrections else None
        )
        return trainer, trainer.fit()

    first, learned = train(recipe, lengths[1:])
    assert first.at.epoch == first.recipe.training.epochs == max(lengths[-1], len(lengths) - 1)
    again, same_weights = train(load_recipe("demo", **first.recipe.model_dump(mode="json")))
    assert same(learned, same_weights)
    timeless = [{key: line[key] for key in ("epoch", "train", "val", "lr")} for line in first.at.history]
    assert timeless == [{key: line[key] for key in ("epoch", "train", "val", "lr")} for line in again.at.history]
    plain = recipe.training.model_copy(update={"epochs": first.recipe.training.epochs})
    assert not same(learned, train(recipe.model_copy(update={"training": plain}))[1])
    assert timeless[-1]["lr"] < timeless[0]["lr"] / 2  # the schedule comes to its end


@pytest.mark.parametrize("epochs", [4, 2], ids=["within an early epoch", "within the last"])
def test_what_a_budget_ended_within_an_epoch_is_in_the_recipe_that_leads_to_the_same_weights(epochs, tiny_recipe):
    recipe = tiny_recipe(training={"epochs": epochs, "batch_size": 8, "keep": "last"})
    dataset = load_dataset(recipe.data)
    first, _ = build_trainer(recipe, dataset, torch.device("cpu"), quiet=True)
    assert first.batches_per_epoch > 2
    first.is_late = lambda: first.at.epoch == 1 and first.at.batch == 2
    learned = first.fit()
    training = first.recipe.training
    assert (training.epochs, training.ended.epoch, training.ended.steps) == (2, 2, 2)
    assert [line["epoch"] for line in first.at.history] == [1, 2]
    again, _ = build_trainer(
        load_recipe("demo", **first.recipe.model_dump(mode="json")), dataset, torch.device("cpu"), quiet=True
    )
    assert same(learned, again.fit())
    longer = training.model_copy(update={"ended": None})
    whole, _ = build_trainer(recipe.model_copy(update={"training": longer}), dataset, torch.device("cpu"), quiet=True)
    assert not same(learned, whole.fit())
    with pytest.raises(RequestError, match=r"set training\.ended=null"):
        load_recipe("demo", **{**recipe.model_dump(mode="json"), "training": {**training.model_dump(), "epochs": 3}})


RUNNER = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from petriscope import api
from petriscope.core.recipe import load_recipe
recipe, folder = sys.argv[1:]
if (Path(folder) / "recipe.yaml").is_file():
    api.resume(folder, quiet=True)
else:
    api.train(load_recipe(recipe), folder, quiet=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # starts several processes, which takes long on a busy machine
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tiny_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    # every step writes a checkpoint, so kills fall within writes too
    recipe.write_text(tiny_recipe(training={"epochs": 16}, evaluation={"stress": "off"}).to_yaml())
    whole = api.train(load_recipe(recipe), tmp_path / "whole", quiet=True)
    folder = tmp_path / "killed"
    dice = random.Random(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", RUNNER, str(recipe), str(folder)])
        try:
            if kills < 5:
                state = folder / "checkpoint" / "state.safetensors"
                before = state.stat().st_mtime_ns if state.exists() else 0
                deadline = time.monotonic() + 200
                # wait until it is at work, then strike at random
                while process.poll() is None and time.monotonic() < deadline:
                    if state.exists() and state.stat().st_mtime_ns != before:
                        break
                    time.sleep(0.005)
                time.sleep(dice.uniform(0, 0.15))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
            process.wait(400)
        finally:
            process.kill()
        if process.returncode == 0:
            break
    assert kills >= 3
    assert process.returncode == 0
    assert same(weights(Run(folder)), weights(whole))
    assert not list(folder.rglob("*.tmp"))


def test_killed_within_a_checkpoint_write_the_one_before_stands(tiny_recipe, tmp_path, monkeypatch):
    whole = api.train(tiny_recipe(), tmp_path / "whole", quiet=True)
    from petriscope.training import checkpoints

    real, count = checkpoints.save_file, iter(range(1000))

    def torn(tensors, path, metadata=None):
        real(tensors, path, metadata=metadata)
        if next(count) == 9:
            path.write_bytes(path.read_bytes()[:100])
            os.chmod(path, 0o600)  # noqa: PTH101
            raise RuntimeError("killed while writing")

    monkeypatch.setattr(checkpoints, "save_file", torn)
    with pytest.raises(RuntimeError):
        api.train(tiny_recipe(), tmp_path / "torn", quiet=True)
    (tmp_path / "torn" / "checkpoint" / ".state.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    monkeypatch.setattr(checkpoints, "save_file", real)
    assert same(weights(api.resume(tmp_path / "torn", quiet=True)), weights(whole))
    assert not list((tmp_path / "torn").rglob("*.tmp"))


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)])
def test_ctrl_c_saves_says_how_to_go_on_and_does_not_tear_a_step(tiny_recipe, tmp_path, monkeypatch, signals):
    whole = api.train(tiny_recipe(), tmp_path / "whole", quiet=True)
    steps, count = Trainer.train_step, iter(range(1000))

    def pressed(self, images, targets):
        if next(count) == 9:
            for number in signals:
                os.kill(os.getpid(), number)
        return steps(self, images, targets)

    monkeypatch.setattr(Trainer, "train_step", pressed)
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted, match=r"petriscope train --resume .*stopped"):
        api.train(tiny_recipe(training={"checkpoint_seconds": 1000}), folder, quiet=True)
    monkeypatch.setattr(Trainer, "train_step", steps)
    assert same(weights(api.resume(folder, quiet=True)), weights(whole))


def test_a_second_ctrl_c_ends_at_once(tiny_recipe, tmp_path, monkeypatch):
    def pressed(self, images, targets):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(Trainer, "train_step", pressed)
    with pytest.raises(Interrupted, match="to continue: petriscope train --resume"):
        api.train(tiny_recipe(), tmp_path / "stopped", quiet=True)


def test_a_full_disk_in_training_is_an_error_and_the_run_can_go_on(tiny_recipe, tmp_path, monkeypatch):
    whole = api.train(tiny_recipe(), tmp_path / "whole", quiet=True)
    from petriscope.training import checkpoints

    real, count = checkpoints.save_file, iter(range(1000))

    def fills_up(*args, **kwargs):
        if next(count) == 5:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_file", fills_up)
    with pytest.raises(PetriscopeError, match="no space left"):
        api.train(tiny_recipe(), tmp_path / "full", quiet=True)
    assert same(weights(api.resume(tmp_path / "full", quiet=True)), weights(whole))


DIVERGES = {"name": "sgd", "lr": 1e30}
TO_NAN, TO_INFINITY = math.nan, -math.inf


def strict_json(folder):
    """All JSON of a run folder, read by a reader that knows no NaN."""

    def refuse(word):
        pytest.fail(f"{word} is no JSON")

    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl")]
    texts = [line for path in files for line in path.read_text().splitlines() if path.suffix == ".jsonl"]
    texts += [path.read_text() for path in files if path.suffix == ".json"]
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as handle:
            texts += handle.metadata().values()
    return [json.loads(text, parse_constant=refuse) for text in texts]


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("averaging", [{}, {"ema": None}, {"ema": None, "swa": 0.5}, {"keep": "last"}])
@pytest.mark.parametrize("val", [True, False])
def test_a_diverged_run_says_so_and_is_not_finished(epochs, averaging, val, tiny_npz, tiny_recipe, tmp_path):
    if not val:
        arrays = {key: array for key, array in np.load(tiny_npz).items() if not key.startswith("val")}
        np.savez(tiny_npz, **arrays)
    recipe = tiny_recipe(
        data={"val_fraction": 0.2 if val else 0},
        optimizer=DIVERGES,
        schedule="constant",
        training={"epochs": epochs, "batch_size": 128, **averaging},
    )
    with pytest.raises(PetriscopeError, match=r"diverged.*optimizer\.lr"):
        api.train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert strict_json(tmp_path / "run")
    with pytest.raises(PetriscopeError, match="diverged"):
        api.resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize("value", [TO_NAN, TO_INFINITY])
@pytest.mark.parametrize("val_fraction", [0.2, 0])
def test_the_update_of_the_very_last_step_counts(value, val_fraction, tiny_npz, tiny_recipe, tmp_path, monkeypatch):
    """The loss of the last step is that of the weights before it."""
    if not val_fraction:
        np.savez(tiny_npz, **{key: array for key, array in np.load(tiny_npz).items() if not key.startswith("val")})
    steps = Trainer.train_step

    def breaks(self, images, targets):
        out = steps(self, images, targets)
        if self._step + 1 == self.settings.epochs * self.batches_per_epoch:
            next(self.averaged.parameters()).data.fill_(value)
        return out

    monkeypatch.setattr(Trainer, "train_step", breaks)
    with pytest.raises(
        PetriscopeError, match=r"the weight features\.0\.weight is not finite in epoch 3: training diverged"
    ):
        api.train(tiny_recipe(data={"val_fraction": val_fraction}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_metric_that_is_not_defined_is_never_best(tiny_recipe, tmp_path, monkeypatch, capsys):
    quick = Classification.quick
    seen = iter([math.nan, 0.5, math.nan])
    monkeypatch.setattr(Classification, "quick", lambda self, *found: {**quick(self, *found), "accuracy": next(seen)})
    run = api.train(tiny_recipe(), tmp_path / "run", quiet=True)
    assert (run.results.training.best_epoch, run.results.training.best) == (2, 0.5)
    assert [line.val["accuracy"] for line in run.history] == [None, 0.5, None]
    assert strict_json(run.folder)
    monkeypatch.setattr(Classification, "quick", lambda self, *found: {**quick(self, *found), "accuracy": math.nan})
    capsys.readouterr()
    run = api.train(tiny_recipe(), tmp_path / "never")
    assert run.results.training.best_epoch is None and run.results.training.kept == "last"
    said = capsys.readouterr().err
    assert "val accuracy –" in said and "Accuracy is not defined on val in any epoch" in said


def test_early_stopping_keeps_the_best(tiny_recipe, tmp_path):
    recipe = tiny_recipe(training={"epochs": 60, "patience": 2})
    run = api.train(recipe, tmp_path / "run", quiet=True)
    accuracy = [line.val["accuracy"] for line in run.history]
    assert len(run.history) < 60
    best = min((-line.val["accuracy"], line.val["loss"], line.epoch) for line in run.history)[2]
    assert run.results.training.best_epoch == best == len(run.history) - 2
    assert run.results.val.value("accuracy") == pytest.approx(max(accuracy))


def test_of_equally_good_epochs_that_with_the_lower_loss_is_kept(tiny_recipe, tmp_path, monkeypatch):
    """Else the first epoch in which a small val is all right would end the learning."""
    seen = iter([(0.5, 0.1), (1.0, 0.9), (1.0, math.nan), (1.0, 0.3), (1.0, 0.3), (1.0, 0.4), (0.9, 0.1)])

    def quick(self, *found):
        accuracy, loss = next(seen)
        return {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr(Classification, "quick", quick)
    run = api.train(tiny_recipe(training={"epochs": 7}), tmp_path / "run", quiet=True)
    assert (run.results.training.best_epoch, run.results.training.best) == (4, 1.0)


def test_the_monitored_metric_decides_what_is_kept(tiny_recipe, tmp_path):
    run = api.train(tiny_recipe(training={"epochs": 6, "monitor": "loss"}), tmp_path / "run", quiet=True)
    losses = [line.val["loss"] for line in run.history]
    assert run.results.training.best_epoch == int(np.argmin(losses)) + 1
    assert run.results.val.calibration.before.nll == pytest.approx(min(losses), rel=1e-4)


def test_weights_of_the_last_epochs_are_averaged_and_kept(tiny_recipe, tmp_path):
    seen = []

    def watch(self, *args):
        seen.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return average(self, *args)

    average = Trainer._average_epochs
    recipe = tiny_recipe(training={"epochs": 5, "swa": 0.6, "keep": "last", "ema": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_average_epochs", watch)
        run = api.train(recipe, tmp_path / "run", quiet=True)
    kept = weights(run)
    for name in ("head.2.weight", "features.0.weight"):
        expected = torch.stack([state[name] for state in seen[2:]]).mean(0)
        torch.testing.assert_close(kept[name], expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(kept["features.1.running_mean"], seen[-1]["features.1.running_mean"])


def test_val_may_be_augmented_while_training_chooses_by_it(tiny_recipe, tmp_path):
    settings = {"augment_val": [{"name": "brightness", "amount": 0.9}, "cutout"]}
    run = api.train(tiny_recipe(evaluation=settings, training={"keep": "last"}), tmp_path / "run", quiet=True)
    plain = api.train(tiny_recipe(training={"keep": "last"}), tmp_path / "plain", quiet=True)
    assert same(weights(run), weights(plain))
    assert run.history[-1].val["loss"] > plain.history[-1].val["loss"]
    assert run.results.val.value("nll") == plain.results.val.value("nll")  # the final metric is of plain images
    with pytest.raises(PetriscopeError, match="augment_val cannot mix images"):
        api.train(tiny_recipe(evaluation={"augment_val": ["mixup"]}), tmp_path / "refused", quiet=True)


def test_it_learns(tiny_recipe, tmp_path):
    run = api.train(tiny_recipe(training={"epochs": 12}), tmp_path / "run", quiet=True)
    assert run.results.val.value("accuracy") == 1.0


@pytest.mark.slow
def test_compiling_gives_the_same_metrics(tiny_recipe, tmp_path):
    pytest.importorskip("torch._inductor")
    import shutil

    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    plain = api.train(tiny_recipe(training={"epochs": 2}), tmp_path / "plain", quiet=True)
    compiled = api.train(tiny_recipe(training={"epochs": 2, "compile": True}), tmp_path / "compiled", quiet=True)
    assert compiled.history[0].train["loss"] == pytest.approx(plain.history[0].train["loss"], rel=0.05)


class TestOrder:
    def test_none_sees_every_image_once(self):
        order = epoch_order(np.array([0, 0, 0, 1]), "none", 0, 0)
        assert sorted(order) == [0, 1, 2, 3]

    def test_another_epoch_and_another_seed_are_another_order(self):
        targets = np.zeros(50, dtype=np.int64)
        orders = [tuple(epoch_order(targets, "none", seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
        assert len(set(orders)) == 4
        assert tuple(epoch_order(targets, "none", 0, 0)) == orders[0]

    def test_the_weighted_sampler_draws_classes_alike(self):
        targets = np.array([0] * 900 + [1] * 100)
        drawn = targets[epoch_order(targets, "weighted", 0, 0)]
        assert len(drawn) == 1000
        assert 430 < drawn.sum() < 570

    def test_the_square_root_sampler_draws_by_roots(self):
        targets = np.array([0] * 900 + [1] * 100)  # roots 30 and 10: a quarter is of the rare class
        drawn = targets[epoch_order(targets, "square-root", 0, 0)]
        assert len(drawn) == 1000
        assert 200 < drawn.sum() < 300

    def test_oversampling_shows_every_image_and_levels_the_classes(self):
        targets = np.array([0] * 70 + [1] * 30 + [2] * 7)
        order = epoch_order(targets, "oversample", 0, 0)
        assert set(order) == set(range(107))
        assert np.bincount(targets[order]).tolist() == [70, 70, 70]

    @pytest.mark.parametrize("size", [40, 107, 250])
    def test_an_epoch_may_have_any_size(self, size):
        targets = np.array([0] * 70 + [1] * 30 + [2] * 7)
        plain = epoch_order(targets, "none", 0, 0, size)
        assert len(plain) == size
        repeats = np.bincount(plain, minlength=107)
        assert repeats.max() - repeats.min() <= 1
        assert np.bincount(targets[epoch_order(targets, "oversample", 0, 0, size)]).tolist() == [size // 3] * 3
        assert len(epoch_order(targets, "weighted", 0, 0, size)) == size


def test_a_checkpoint_of_an_older_version_is_resumed(tiny_recipe, tmp_path, monkeypatch):
    whole = api.train(tiny_recipe(), tmp_path / "whole", quiet=True)
    steps, count = Trainer.train_step, iter(range(1000))

    def killed(self, images, targets):
        if next(count) == 9:
            raise RuntimeError("killed")
        return steps(self, images, targets)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(RuntimeError):
        api.train(tiny_recipe(), tmp_path / "old", quiet=True)
    monkeypatch.undo()
    run = Run(tmp_path / "old")
    tensors, facts = load_checkpoint(run.checkpoint)
    for line in facts["position"]["history"]:
        line["pictures_per_second"] = line.pop("images_per_second")
    save_checkpoint(run.checkpoint, tensors, facts)
    resumed = api.resume(run.folder, quiet=True)
    assert same(weights(resumed), weights(whole))
    assert all(line.images_per_second for line in resumed.history)


def test_one_process_at_a_time_trains_into_a_run(tiny_recipe, tmp_path, monkeypatch):
    folder, fit = tmp_path / "run", Trainer.fit

    def fit_beside_another(self):
        with pytest.raises(RequestError, match=r"another process is training .*run; wait"):
            api.resume(folder, quiet=True)
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", fit_beside_another)
    run = api.train(tiny_recipe(), folder, quiet=True)
    assert len(run.history) == tiny_recipe().training.epochs


def test_a_finished_run_is_left_as_it_is_and_lacks_nothing(tiny_recipe, tmp_path, capsys):
    run = api.train(tiny_recipe(evaluation={"stress": "off"}), tmp_path / "run", quiet=True)
    assert not run.checkpoint.parent.exists()
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    run.checkpoint.parent.mkdir()  # as if killed before the last things were done
    (run.folder / "report.html").unlink()
    assert api.resume(run.folder, data="elsewhere.npz") == run
    assert "nothing to resume, and elsewhere.npz was not read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    assert not run.checkpoint.parent.exists()


def test_a_resumed_run_is_refused_when_the_data_changed(tiny_recipe, tiny_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda self: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError):
        api.train(tiny_recipe(), tmp_path / "run", quiet=True)
    arrays = dict(np.load(tiny_npz))
    arrays["train_images"][0] += 1
    np.savez(tiny_npz, **arrays)
    with pytest.raises(PetriscopeError, match="changed"):
        api.resume(tmp_path / "run")
    with pytest.raises(PetriscopeError, match="not a run folder"):
        open_run(tmp_path)


def test_images_are_standardized_before_they_are_augmented(tiny_recipe):
    """Standardizing afterwards would undo what augmentations do to colors."""
    brighter = [{"name": "brightness", "amount": 0.4}]
    recipe = tiny_recipe(augment=brighter, data={"standardize": ["background"]})
    trainer, _ = build_trainer(recipe, load_dataset(recipe.data), torch.device("cpu"), quiet=True)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(80, 240, (6, *trainer.train.images.shape), dtype=np.uint8))
    targets = torch.zeros(6, dtype=torch.int64)

    def seen(batch):
        return trainer.augmented(batch, targets, torch.Generator().manual_seed(0))[0]

    dimmed = (images * 0.7).round().to(torch.uint8)
    torch.testing.assert_close(seen(dimmed), seen(images), atol=0.02, rtol=0)
    light = background(seen(images)).mean(1)
    assert light.max() - light.min() > 0.05, "the augmentation is not undone"
