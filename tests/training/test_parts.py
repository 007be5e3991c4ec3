"""Losses, optimizers, schedules, averaging, checkpoints: each against the textbook or torch's own."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from devices import check_same_kind, on_every_device, queued
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.recipe import Part
from petriscope.training.averaging import EMA
from petriscope.training.checkpoints import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from petriscope.training.losses import LOSSES
from petriscope.training.losses.class_weights import weigh_classes
from petriscope.training.optimizers import OPTIMIZERS
from petriscope.training.schedules import SCHEDULES

COUNTS = np.array([10, 30, 60])
A_TARGET_AT_A_TIME = ["cross-entropy", "focal", "generalized-cross-entropy"]


class TestLosses:
    @pytest.mark.parametrize("name", sorted(LOSSES.members))
    @pytest.mark.parametrize("shares", [False, True])
    @on_every_device
    def test_it_runs_on_every_device_and_waits_for_none(self, name, shares, device):
        if shares and name == "lovasz":
            pytest.skip("shares of classes have no IoU")
        options = {"terms": ["focal", "dice"]} if name == "sum" else {}
        loss = LOSSES.build(Part(name=name, **options), COUNTS)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(18 if name == "consistency" else 6, 3, generator=generator)
        targets = torch.rand(6, 3, generator=generator).softmax(1) if shares else torch.arange(6) % 3
        if getattr(loss, "per_label", False) and not shares:
            targets = nn.functional.one_hot(targets, 3).float()
        expected = loss(logits, targets)
        there, targets = logits.to(device).requires_grad_(), targets.to(device)
        found = loss.to(device)(there, targets)
        check_same_kind(found, expected, device)
        with queued(device):
            loss(there, targets).backward()
        if device != "meta":
            torch.testing.assert_close(found.cpu(), expected)

    def test_cross_entropy_is_minus_log_of_the_true_probability(self):
        loss = LOSSES.build(Part(name="cross-entropy"), COUNTS)
        logits = torch.tensor([[1.0, 2.0, 3.0]])
        expected = -(3 - math.log(math.e + math.e**2 + math.e**3))
        assert loss(logits, torch.tensor([2])).item() == pytest.approx(expected)

    def test_label_smoothing_is_a_mixture_with_the_uniform(self):
        loss = LOSSES.build(Part(name="cross-entropy", label_smoothing=0.3), COUNTS)
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([0, 1, 2, 1, 0])
        soft = 0.7 * nn.functional.one_hot(targets, 3) + 0.1
        assert loss(logits, targets).item() == pytest.approx(
            -(soft * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5
        )

    def test_balanced_weights_make_classes_weigh_the_same(self):
        weights = weigh_classes("balanced", COUNTS).numpy()
        assert np.allclose(weights * COUNTS, COUNTS.sum() / 3)
        assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)

    def test_weights_are_a_number_a_class(self):
        assert LOSSES.build(Part(name="cross-entropy", class_weights=[1, 2, 3]), COUNTS).weight.tolist() == [1, 2, 3]
        with pytest.raises(RequestError, match="2 numbers for 3 classes"):
            LOSSES.build(Part(name="cross-entropy", class_weights=[1, 2]), COUNTS)

    @pytest.mark.parametrize("name", A_TARGET_AT_A_TIME)
    @pytest.mark.parametrize("weights", ["none", "balanced"])
    def test_hard_targets_are_soft_ones_of_one_class(self, name, weights):
        loss = LOSSES.build(Part(name=name, class_weights=weights), COUNTS)
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([0, 1, 2, 1, 0, 2])
        soft = nn.functional.one_hot(targets, 3).float()
        scale = 1.0 if loss.weight is None else loss.weight[targets].mean().item()
        assert loss(logits, soft).item() == pytest.approx(loss(logits, targets).item() * scale, rel=1e-5)

    @pytest.mark.parametrize("name", A_TARGET_AT_A_TIME)
    def test_masks_are_as_many_labels_as_pixels(self, name):
        loss = LOSSES.build(Part(name=name, class_weights="balanced"), COUNTS)
        logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        masks = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
        flat = loss(logits.permute(0, 2, 3, 1).reshape(-1, 3), masks.flatten())
        assert loss(logits, masks).item() == pytest.approx(flat.item(), rel=1e-5)

    @pytest.mark.parametrize("name", A_TARGET_AT_A_TIME)
    def test_the_gradient_pulls_towards_the_target(self, name):
        logits = torch.zeros(1, 3, requires_grad=True)
        LOSSES.build(Part(name=name), COUNTS)(logits, torch.tensor([1])).backward()
        assert logits.grad.argmin() == 1
        assert (logits.grad[0, [0, 2]] > 0).all()

    def test_focal_loss_is_the_papers(self):
        p = torch.tensor([[0.7, 0.2, 0.1]])
        loss = LOSSES.build(Part(name="focal", gamma=2), COUNTS)
        assert loss(p.log(), torch.tensor([1])).item() == pytest.approx(-(0.8**2) * math.log(0.2), rel=1e-5)
        plain = LOSSES.build(Part(name="focal", gamma=0), COUNTS)
        assert plain(p.log(), torch.tensor([1])).item() == pytest.approx(-math.log(0.2), rel=1e-5)

    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
    def test_focal_loss_has_a_slope_where_the_network_is_certain(self, gamma):
        logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
        LOSSES.build(Part(name="focal", gamma=gamma), COUNTS)(logits, torch.tensor([0])).backward()
        assert logits.grad.isfinite().all()

    def test_generalized_cross_entropy_is_the_papers(self):
        p = torch.tensor([[0.7, 0.2, 0.1]])
        loss = LOSSES.build(Part(name="generalized-cross-entropy", q=0.7), COUNTS)
        assert loss(p.log(), torch.tensor([1])).item() == pytest.approx((1 - 0.2**0.7) / 0.7, rel=1e-5)
        absolute = LOSSES.build(Part(name="generalized-cross-entropy", q=1), COUNTS)
        assert absolute(p.log(), torch.tensor([1])).item() == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.members))
class TestOptimizers:
    def net(self):
        torch.manual_seed(0)
        layers = {"body": nn.Linear(4, 8), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, 2)}
        return nn.Sequential(OrderedDict(layers))

    def step(self, model, optimizer, seed):
        images = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        loss = model(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def test_it_descends(self, name):
        model = self.net()
        optimizer = OPTIMIZERS.build(Part(name=name, lr=0.01), model)
        losses = [self.step(model, optimizer, seed) for seed in range(30)]
        assert np.mean(losses[-5:]) < np.mean(losses[:5])

    def test_biases_and_norms_do_not_decay(self, name):
        groups = OPTIMIZERS.build(Part(name=name, lr=0.01, weight_decay=0.5), self.net()).param_groups
        for group in groups:
            assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])

    def test_its_state_survives_a_checkpoint(self, name, tmp_path):
        model, path = self.net(), tmp_path / "state.safetensors"
        optimizer = OPTIMIZERS.build(Part(name=name, lr=0.01), model)
        for seed in range(3):
            self.step(model, optimizer, seed)
        tensors, rest = optimizer_tensors(optimizer)
        save_checkpoint(path, {"model": model.state_dict(), "optimizer": tensors}, {"rest": rest})
        groups, facts = load_checkpoint(path)
        other = self.net()
        other.load_state_dict(groups["model"])
        restored = OPTIMIZERS.build(Part(name=name, lr=0.01), other)
        restore_optimizer(restored, groups.get("optimizer", {}), facts["rest"])
        self.step(model, optimizer, 9)
        self.step(other, restored, 9)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


class TestSchedules:
    def factors(self, name, per_epoch=10, epochs=10, **options):
        schedule = SCHEDULES.build(Part(name=name, **options), per_epoch, epochs)
        return [schedule.factor(step) for step in range(per_epoch * epochs)]

    def reference(self, make, steps=100):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make(optimizer)
        out = []
        for _ in range(steps):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    def test_cosine_is_torchs(self):
        theirs = self.reference(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100))
        assert np.allclose(self.factors("cosine"), theirs)

    def test_one_cycle_is_torchs(self):
        theirs = self.reference(
            lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, 1.0, total_steps=101, pct_start=0.3, div_factor=25, final_div_factor=40
            ),
        )
        ours = self.factors("one-cycle", peak=0.3, start=0.04, final=0.001)
        assert np.abs(np.array(ours) - theirs).max() < 0.05  # torch rounds the peak to a step
        assert max(ours) == pytest.approx(1, abs=1e-3)
        assert ours[-1] == pytest.approx(0.001)

    def test_step_is_torchs(self):
        theirs = self.reference(lambda o: torch.optim.lr_scheduler.StepLR(o, 30, 0.5))
        assert np.allclose(self.factors("step", every=3, decay=0.5), theirs)

    def test_warm_up_is_linear(self):
        ours = self.factors("constant", warmup_epochs=2)
        assert np.allclose(ours[:20], np.arange(1, 21) / 20)
        assert set(ours[20:]) == {1.0}

    def test_plateau_drops_after_its_patience_and_survives_saving(self):
        schedule = SCHEDULES.build(Part(name="plateau", decay=0.1, patience=2), 10, 10)
        for value in (1.0, 0.5, 0.6, 0.7):
            schedule.observe(value)
        assert schedule.factor(0) == pytest.approx(0.1)
        other = SCHEDULES.build(Part(name="plateau", decay=0.1, patience=2), 10, 10)
        other.restore(schedule.state())
        for value in (0.8, 0.9):
            schedule.observe(value)
            other.observe(value)
        assert other.factor(5) == schedule.factor(5) == pytest.approx(0.01)

    @given(name=st.sampled_from(sorted(SCHEDULES.members)), per_epoch=st.integers(1, 7), epochs=st.integers(1, 9))
    def test_every_factor_is_a_share(self, name, per_epoch, epochs):
        assert all(0 <= factor <= 1 for factor in self.factors(name, per_epoch, epochs))


class TestEMA:
    def test_it_is_the_weighted_mean_of_what_was(self):
        model = nn.Linear(1, 1, bias=False)
        ema = EMA(model, 0.9)
        expected = model.weight.item()
        for step in range(200):
            with torch.no_grad():
                model.weight.fill_(float(step % 7))
            ema.update(step)
            keep = min(0.9, (1 + step) / (10 + step))
            expected = keep * expected + (1 - keep) * (step % 7)
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-4)

    def test_running_statistics_follow_and_counters_are_copied(self):
        model = nn.BatchNorm1d(2)
        ema = EMA(model, 0.5)
        model(torch.randn(8, 2) + 5)
        ema.update(1000)
        assert ema.model.num_batches_tracked == 1
        torch.testing.assert_close(ema.model.running_mean, model.running_mean / 2)
        assert not ema.model.training


class TestCheckpoints:
    def test_a_damaged_one_is_an_error_that_says_what_to_do(self, tmp_path):
        path = tmp_path / "state.safetensors"
        save_checkpoint(path, {"model": {"w": torch.ones(100)}}, {})
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(PetriscopeError, match="damaged"):
            load_checkpoint(path)

    def test_a_full_disk_leaves_the_old_one_whole(self, tmp_path, monkeypatch):
        path = tmp_path / "state.safetensors"
        save_checkpoint(path, {"model": {"w": torch.ones(3)}}, {"n": 1})

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("petriscope.training.checkpoints.save_file", full)
        with pytest.raises(PetriscopeError, match="no space left"):
            save_checkpoint(path, {"model": {"w": torch.zeros(3)}}, {"n": 2})
        groups, facts = load_checkpoint(path)
        assert facts == {"n": 1}
        assert groups["model"]["w"].tolist() == [1, 1, 1]
        assert list(tmp_path.iterdir()) == [path]
