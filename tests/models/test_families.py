"""What is particular to each model of Petriscope's own."""

import pytest
import torch
from torch import nn

from petriscope.core.recipe import Part
from petriscope.models import build_model
from petriscope.models.attention import CBAM, SE
from petriscope.models.cost import multiply_adds, parameters
from petriscope.models.d4_resnet import act
from petriscope.models.drop_path import drop_path


def make(name, shape=(16, 16, 3), classes=3, **options):
    torch.manual_seed(0)
    return build_model(Part(name=name, **options), classes, shape, fresh=False)


def batch(count=4, side=16, channels=3, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


WITH_ATTENTION = {
    "simple-cnn": {},
    "vgg": {"widths": [8, 8, 8, 8], "hidden": 8},
    "autoencoder": {"widths": [8, 8]},
    "inception": {"width": 0.1},
    "quiz-dnn": {},
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
}


class TestAttention:
    @pytest.mark.parametrize("kind", [SE, CBAM])
    def test_it_scales_and_no_more(self, kind):
        torch.manual_seed(0)
        features = torch.rand(2, 16, 5, 7) + 0.1
        share = kind(16)(features) / features
        assert share.shape == features.shape
        assert share.min() > 0
        assert share.max() < 1

    def test_se_gates_a_channel_and_cbam_a_place_too(self):
        torch.manual_seed(0)
        features = torch.rand(2, 16, 5, 7) + 0.1
        assert (SE(16)(features) / features).std((2, 3)).max() < 1e-6
        assert (CBAM(16)(features) / features).std((2, 3)).min() > 1e-6

    def test_parameters_as_in_the_papers(self):
        # two layers through 64 / 16 = 4, at least 8, with biases; and 7x7 over two summaries
        assert parameters(SE(64)) == 2 * 64 * 8 + 64 + 8
        assert parameters(SE(256)) == 2 * 256 * 16 + 256 + 16
        assert parameters(CBAM(256)) == parameters(SE(256)) + 98

    @pytest.mark.parametrize("name", sorted(WITH_ATTENTION))
    def test_every_network_of_the_comparison_takes_it(self, name):
        counts = {}
        for kind, module in (("none", ()), ("se", SE), ("cbam", CBAM)):
            with torch.device("meta"):
                model = make(name, attention=kind, **WITH_ATTENTION[name])
            counts[kind] = parameters(model)
            assert any(isinstance(each, module) for each in model.modules()) == (kind != "none")
        assert counts["none"] < counts["se"] < counts["cbam"]


class TestSimpleCNN:
    @pytest.mark.parametrize("norm", ["none", "batch", "layer"])
    def test_it_has_the_parameters_of_its_description(self, norm):
        # 3x3 convolutions 3-32-64-128; batch norm has two numbers per channel, layer norm two a place, plain ones a bias
        by_hand = 27 * 32 + 9 * 32 * 64 + 9 * 64 * 128 + 128 * 9 * 128 + 128 + 128 * 8 + 8
        extra = {"none": 224, "batch": 448, "layer": 2 * (28 * 28 * 32 + 14 * 14 * 64 + 7 * 7 * 128)}[norm]
        assert parameters(make("simple-cnn", (28, 28, 3), 8, norm=norm)) == by_hand + extra

    def test_parameter_names_stay_so_that_old_model_files_load(self):
        layers = [
            "features.0",
            "features.1",
            "features.4",
            "features.5",
            "features.8",
            "features.9",
            "head.2",
            "head.5",
        ]
        names = [name.rpartition(".")[0] for name, _ in make("simple-cnn", norm="batch").named_parameters()]
        assert list(dict.fromkeys(names)) == layers


class TestQuizDNN:
    def test_the_sums_are_those_of_the_project(self):
        model = make("quiz-dnn").eval()
        one, two, three, five, six, seven, nine, ten, eleven = model.blocks
        pool = nn.MaxPool2d(2)
        x1 = one(batch())
        x2 = two(x1)
        x3 = three(x1 + x2)
        x4 = pool(x1 + x2 + x3)
        x5 = five(x4)
        x6 = six(x4 + x5)
        x7 = seven(x4 + x5 + x6)
        x8 = pool(x5 + x6 + x7)
        x9 = nine(x8)
        x10 = ten(x8 + x9)
        x11 = eleven(x8 + x9 + x10)
        logits = model.head(nn.AdaptiveAvgPool2d(1)(x11).flatten(1))
        torch.testing.assert_close(model(batch()), logits)

    def test_each_unit_is_convolution_with_bias_then_relu_then_norm(self):
        model = make("quiz-dnn")
        for unit in model.blocks:
            assert [type(layer) for layer in unit] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
            assert unit[0].bias is not None
        assert [unit[0].in_channels for unit in model.blocks] == [3, *[64] * 8]

    @pytest.mark.parametrize("activation", ["gelu", "silu", "mish"])
    def test_another_activation_has_as_many_parameters(self, activation):
        model, default = make("quiz-dnn", activation=activation).eval(), make("quiz-dnn").eval()
        assert parameters(model) == parameters(default)
        assert not torch.equal(model(batch()), default(batch()))


class TestSECNN:
    def test_it_keeps_to_its_budget_at_64_pixels(self):
        model = make("se-cnn", (64, 64, 3), 8)
        assert parameters(model) < 500_000
        assert multiply_adds(model, (64, 64, 3)) < 120e6
        assert sum(isinstance(each, SE) for each in model.modules()) == len(model.blocks)

    @pytest.mark.parametrize("side", [5, 28])
    def test_odd_sides(self, side):
        assert make("se-cnn", (side, side, 1), widths=[4, 8, 8])(batch(2, side, 1)).shape == (2, 3)


class TestVGG:
    def test_it_has_fifteen_layers(self):
        model = make("vgg")
        kinds = [type(module) for module in model.modules()]
        assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == (12, 3)


class TestInception:
    def test_modules_are_as_wide_as_in_the_paper(self):
        with torch.device("meta"):
            model = make("inception", width=1.0)
        outs = [module.out for group in model.blocks for module in group if hasattr(module, "out")]
        assert outs == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


class TestAutoencoder:
    @pytest.mark.parametrize("shape", [(16, 16, 1), (17, 30, 3)])
    def test_reconstructions_have_the_shape_of_the_images(self, shape):
        model = make("autoencoder", shape)
        images = torch.randn(2, shape[2], *shape[:2])
        assert model.reconstruct(images).shape == images.shape
        assert model.encode(images).shape == (2, 256, shape[0] // 16, shape[1] // 16)

    def test_the_loss_is_the_weighted_error_of_the_reconstruction(self):
        model = make("autoencoder", reconstruction=0.5).eval()
        logits, loss = model.forward_with_loss(batch())
        torch.testing.assert_close(logits, model(batch()))
        torch.testing.assert_close(loss, 0.5 * (model.reconstruct(batch()) - batch()).square().mean())

    def test_it_learns_to_reconstruct(self):
        model = make("autoencoder", widths=[8, 16])
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        images = nn.functional.interpolate(batch(8, 4), scale_factor=4)
        losses = []
        for _ in range(30):
            loss = model.forward_with_loss(images)[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.parametrize(("learns", "reaches"), [("both", True), ("reconstruction", False)])
    def test_the_first_of_two_stages_keeps_the_classifier_out_of_the_encoder(self, learns, reaches):
        model = make("autoencoder", encoder_learns=learns)
        logits, _ = model.forward_with_loss(batch())
        logits.square().sum().backward()
        assert (model.blocks[0][0].weight.grad is not None) == reaches
        assert model.head[1].weight.grad is not None

    def test_without_weight_there_is_no_reconstruction(self):
        model = make("autoencoder", reconstruction=0)
        logits, loss = model.forward_with_loss(batch())
        assert loss == 0
        (logits.sum() + loss).backward()
        assert model.to_image.weight.grad is None


def test_resnet18_for_small_images():
    model = make("resnet18", (32, 32, 3), 10)
    assert parameters(model) == 11_173_962
    assert multiply_adds(model, (32, 32, 3)) == pytest.approx(0.56e9, rel=0.02)


class TestDropPath:
    def test_it_keeps_the_mean_and_is_for_training_alone(self):
        torch.manual_seed(0)
        change = torch.ones(4000, 1, 1, 1)
        dropped = drop_path(change, 0.25, True)
        assert dropped.unique().tolist() == [0, pytest.approx(4 / 3)]
        assert dropped.mean() == pytest.approx(1, abs=0.05)
        assert drop_path(change, 0.25, False) is change

    @pytest.mark.parametrize("name", ["d4-resnet", "se-cnn"])
    def test_models_use_it(self, name):
        model = make(name, drop_path=0.5)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)  # a block of se-cnn starts as its shortcut
        assert not torch.equal(model(batch()), model(batch()))
        model.eval()
        assert torch.equal(model(batch()), model(batch()))


class TestD4:
    @pytest.mark.parametrize("element", range(8))
    def test_logits_do_not_change_with_turns_and_mirrors(self, element):
        model = make("d4-resnet", widths=[8, 16, 16], depths=[1, 1, 1])
        model.train()
        for seed in range(3):  # running statistics away from their start
            model(batch(8, seed=seed) * 2 + 1)
        model.eval()
        torch.testing.assert_close(model(act(element, batch())), model(batch()), atol=1e-4, rtol=1e-4)

    def test_an_ordinary_network_does_change(self):
        model = make("simple-cnn").eval()
        assert (model(act(1, batch())) - model(batch())).abs().max() > 1e-3

    def test_width_costs_an_eighth_of_the_weights(self):
        one = make("d4-resnet", widths=[64], depths=[1]).blocks[0].conv2.weight.numel()
        assert one == 64 * 64 * 9 / 8
