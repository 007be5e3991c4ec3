"""What is particular to models of masks, and to their building blocks."""

import pytest
import torch
from torch import nn

from petriscope.core.recipe import Part
from petriscope.models import build_model
from petriscope.models.attention_gate import AttentionGate
from petriscope.models.context import DilatedInception, GlobalContext
from petriscope.models.cost import multiply_adds, parameters
from petriscope.models.mask_head import CellularAutomaton
from petriscope.models.segmenter import padded
from petriscope.models.unet import DoubleConv

SMALL = {
    "unet": {"widths": [4, 8, 8]},
    "attention-unet": {"widths": [4, 8, 8]},
    "dual-unet": {"widths": [4, 8, 8], "rates": [2, 4], "micro_widths": [4, 8]},
}
every = pytest.mark.parametrize("name", sorted(SMALL))


def make(name, shape=(16, 24, 1), classes=3, **options):
    torch.manual_seed(0)
    return build_model(Part(name=name, **{**SMALL[name], **options}), classes, shape, fresh=False)


def shaken(model):
    """With weights of which none is nought, as training leaves them; in eval."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def reach(function, side=33):
    """How far from a place an output depends on inputs, in pixels, from the gradient."""
    images = torch.randn(1, 8, side, side, requires_grad=True)
    function(images)[0, :, side // 2, side // 2].sum().backward()
    rows, columns = torch.nonzero(images.grad[0].abs().sum(0), as_tuple=True)
    return max((rows - side // 2).abs().max().item(), (columns - side // 2).abs().max().item())


class TestSizes:
    @every
    @pytest.mark.parametrize("shape", [(64, 128, 1), (5, 7, 3), (1, 1, 1), (30, 17, 3)])
    def test_logits_are_as_large_as_the_image(self, name, shape):
        model = make(name, shape).eval()
        images = torch.randn(2, shape[2], *shape[:2])
        assert model(images).shape == (2, 3, *shape[:2])
        assert model(images).isfinite().all()

    @pytest.mark.parametrize("patch", [2, 3, 4])
    def test_patches_save_work_and_keep_the_size(self, patch):
        plain, patched = make("unet", (48, 48, 1)), make("unet", (48, 48, 1), patch=patch)
        assert patched.eval()(torch.randn(1, 1, 45, 50)).shape == (1, 3, 45, 50)
        work = multiply_adds(plain, (48, 48, 1)) / multiply_adds(patched, (48, 48, 1))
        assert work > 0.6 * patch**2

    def test_padding_repeats_the_edge(self):
        images = torch.arange(6.0).reshape(1, 1, 2, 3)
        out = padded(images, 4)
        assert out.shape == (1, 1, 4, 4)
        assert torch.equal(out[:, :, :2, :3], images)
        assert out[0, 0, 3].tolist() == [3, 4, 5, 5]
        assert padded(out, 4) is out


class TestStandardize:
    @every
    def test_light_and_contrast_count_no_longer(self, name):
        images = torch.randn(2, 3, 16, 24)
        other = 0.4 * images + torch.tensor([0.8, -0.5])[:, None, None, None]
        plain, standard = (make(name, (16, 24, 3), standardize=flag).eval() for flag in (False, True))
        assert (standard(images) - standard(other)).abs().max() < 0.1 * (plain(images) - plain(other)).abs().max()

    @every
    def test_a_image_is_standardized_by_itself(self, name):
        model = make(name, standardize=True).eval()
        images = torch.randn(3, 1, 16, 24)
        assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)

    @pytest.mark.parametrize("shape", [(16, 24, 1), (1, 1, 1)])
    def test_a_blank_image_has_finite_logits(self, shape):
        assert make("unet", shape, standardize=True).eval()(torch.ones(2, 1, *shape[:2])).isfinite().all()

    def test_the_differences_of_its_channels_stay(self):
        model = make("unet", (16, 24, 3), standardize=True).eval()
        images = torch.randn(1, 3, 16, 24)
        tinted = images + torch.tensor([1.0, 0.0, -1.0])[:, None, None]
        assert (model(images) - model(tinted)).abs().max() > 0.01


class TestDoubleConv:
    @pytest.mark.parametrize(("kernel", "rate", "pixels"), [(3, 1, 2), (3, 4, 5), (5, 1, 4), (7, 2, 9)])
    def test_it_sees_as_far_as_its_filters(self, kernel, rate, pixels):
        assert reach(shaken(DoubleConv(8, 4, kernel, rate))) == pixels

    def test_a_residual_block_adds_its_input(self):
        block = DoubleConv(8, 8, residual=True).eval()
        nn.init.zeros_(block.norm2.weight)
        features = torch.randn(2, 8, 6, 6)
        torch.testing.assert_close(block(features), features.relu())


class TestAttentionGate:
    def test_it_scales_all_channels_of_a_place_alike(self):
        torch.manual_seed(0)
        gate, fine, coarse = AttentionGate(8, 16), torch.rand(2, 8, 8, 12) + 0.1, torch.randn(2, 16, 4, 6)
        share = gate(fine, coarse) / fine
        assert 0 < share.min() < share.max() < 1
        assert share.std(1).max() < 1e-6
        assert share.std((2, 3)).min() > 1e-4

    def test_what_it_lets_pass_depends_on_both(self):
        torch.manual_seed(0)
        gate = AttentionGate(8, 16)
        fine, coarse = (torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4))
        share = gate(fine, coarse) / fine
        assert (gate(fine, -coarse) / fine - share).abs().max() > 1e-3
        assert (gate(2 * fine, coarse) / (2 * fine) - share).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["unet", "dual-unet"])
    def test_models_have_one_a_level(self, name):
        kinds = [type(module) for module in make(name, gates=True).modules()]
        assert kinds.count(AttentionGate) == 2
        assert AttentionGate not in [type(module) for module in make(name, gates=False).modules()]

    def test_attention_unet_is_the_unet_with_gates(self):
        assert make("attention-unet").state_dict().keys() == make("unet", gates=True).state_dict().keys()


class TestGlobalContext:
    def test_it_starts_as_the_identity(self):
        features = torch.randn(2, 16, 5, 6)
        assert torch.equal(GlobalContext(16)(features), features)

    def test_it_adds_the_same_everywhere_wherever_things_are(self):
        torch.manual_seed(0)
        block, features = shaken(GlobalContext(16)), torch.randn(2, 16, 5, 6)
        change = block(features) - features
        assert change.std((2, 3)).max() < 1e-5
        assert change.abs().min() > 0
        moved = features.roll((2, 3), (2, 3))
        torch.testing.assert_close(block(moved) - moved, change, atol=1e-5, rtol=1e-4)


class TestDilatedInception:
    @pytest.mark.parametrize(("rates", "pixels"), [((1,), 1), ((1, 2, 4, 8), 8), ((3, 5), 5)])
    def test_it_sees_as_far_as_its_widest_branch(self, rates, pixels):
        assert reach(shaken(DilatedInception(8, rates))) == pixels

    def test_it_keeps_the_shape_where_rates_do_not_divide_channels(self):
        assert DilatedInception(10, (1, 2, 4)).eval()(torch.randn(1, 10, 4, 4)).shape == (1, 10, 4, 4)


class TestCellularAutomaton:
    def automaton(self, steps):
        torch.manual_seed(0)
        return CellularAutomaton(8, 3, steps)

    def test_it_starts_as_the_identity(self):
        logits, features = torch.randn(2, 3, 5, 5), torch.randn(2, 8, 5, 5)
        assert torch.equal(self.automaton(4)(logits, features), logits)

    @pytest.mark.parametrize("steps", [1, 2, 5])
    def test_a_place_learns_of_what_is_so_many_pixels_away(self, steps):
        automaton = shaken(self.automaton(steps))
        assert reach(lambda images: automaton(images[:, :3], images)) == steps

    def test_steps_share_one_rule(self):
        assert parameters(self.automaton(1)) == parameters(self.automaton(9))

    def test_places_act_by_chance_in_training_alone(self):
        automaton = shaken(self.automaton(3))
        logits, features = torch.randn(1, 3, 5, 5), torch.randn(1, 8, 5, 5)
        assert torch.equal(automaton(logits, features), automaton(logits, features))
        automaton.train()
        assert not torch.equal(automaton(logits, features), automaton(logits, features))

    def test_chance_keeps_the_mean_of_a_step(self):
        automaton = shaken(self.automaton(1))
        logits, features = torch.randn(1, 3, 4, 4), torch.randn(1, 8, 4, 4)
        expected = automaton(logits, features)
        automaton.train()
        mean = torch.stack([automaton(logits, features) for _ in range(600)]).mean(0)
        assert (mean - expected).abs().mean() < 0.15 * (expected - logits).abs().mean()

    @every
    def test_every_model_takes_it(self, name):
        plain, refined = make(name), make(name, refine=2)
        extra = set(refined.state_dict()) - set(plain.state_dict())
        assert extra and all(key.startswith("head.refine.") for key in extra)


PARTS_OF_DUAL_UNET = {
    "inception": (False, "macro.bottleneck.1."),
    "gates": (False, ".gate."),
    "context": (False, "micro.bottleneck."),
    "attention": ("none", ".attention."),
}


class TestDualUNet:
    @pytest.mark.parametrize("part", sorted(PARTS_OF_DUAL_UNET))
    def test_every_part_can_be_left_out(self, part):
        off, inside = PARTS_OF_DUAL_UNET[part]
        options = {"attention": "se"}
        full, less = make("dual-unet", **options), make("dual-unet", **{**options, part: off})
        gone = set(full.state_dict()) - set(less.state_dict())
        assert gone
        assert all(inside in key or key.startswith("body.fuse.3.") for key in gone)
        assert set(less.state_dict()) <= set(full.state_dict())

    def test_dilation_can_be_left_out(self):
        def rates(model):
            convs = [module for module in model.body.macro.encoder.modules() if isinstance(module, nn.Conv2d)]
            return [conv.dilation[0] for conv in convs if conv.dilation[0] > 1]

        assert rates(make("dual-unet")) == [2, 4]
        assert rates(make("dual-unet", rates=[])) == []

    @pytest.mark.parametrize("branch", ["macro", "micro"])
    def test_each_branch_stands_alone(self, branch):
        both, alone = make("dual-unet"), make("dual-unet", branches=branch)
        assert parameters(alone) < parameters(both)
        assert alone.eval()(torch.randn(1, 1, 16, 24)).shape == (1, 3, 16, 24)

    def test_both_branches_count(self):
        model = make("dual-unet").eval()
        images = torch.randn(1, 1, 16, 24)
        before = model(images)
        for branch in (model.body.macro, model.body.micro):
            weight = branch.decoder.blocks[-1].convs.norm2.weight
            kept = weight.detach().clone()
            nn.init.zeros_(weight)
            assert not torch.equal(model(images), before)
            with torch.no_grad():
                weight.copy_(kept)


def test_a_unet_learns_the_edges_of_a_shape():
    """What is bright is class 1 and its outline class 2: it takes local detail and some surroundings."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    distance = torch.stack(
        [((rows - y) ** 2 + (columns - x) ** 2).sqrt() for y, x in ((5, 5), (9, 8), (7, 11), (10, 4))]
    )
    masks = (distance < 5).long() + ((distance < 5) & (distance > 3)).long()
    images = (distance < 5).float()[:, None] + 0.1 * torch.randn(
        4, 1, 16, 16, generator=torch.Generator().manual_seed(0)
    )
    model = make("unet", (16, 16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), masks).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == masks).float().mean() > 0.9
