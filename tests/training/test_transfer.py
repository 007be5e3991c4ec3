"""Fine-tuning, features taken once, distillation: starting from what another training learnt."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.recipe import FinetuneSection, Part, check_recipe
from petriscope.data import load_dataset
from petriscope.inference.predictor import load_model
from petriscope.models import build_model
from petriscope.models.layers import head_of, only_head_of, ordered_layers
from petriscope.models.weights import read_weights
from petriscope.training.build import build_trainer
from petriscope.training.finetune import Plan, trained
from petriscope.training.loop import Trainer
from petriscope.training.optimizers import OPTIMIZERS

MODELS = {
    "simple-cnn": (Part(name="simple-cnn", norm="batch"), (16, 16, 3)),
    "resnet18": (Part(name="resnet18"), (16, 16, 3)),
    "d4-resnet": (Part(name="d4-resnet", widths=[8, 16], depths=[1, 2]), (16, 16, 3)),
    "mobilenet-v3-large": (Part(name="mobilenet-v3-large"), (32, 32, 3)),
    "deit-tiny": (Part(name="deit-tiny", resize=224), (32, 32, 3)),
    "dual-unet": (Part(name="dual-unet", widths=[4, 8], rates=[2]), (16, 16, 3)),
}


@pytest.fixture(params=sorted(MODELS))
def model(request):
    part, shape = MODELS[request.param]
    torch.manual_seed(0)
    return build_model(part, 4, shape)


def sizes(model, phrase):
    return len(trained(model, phrase))


class TestPhrases:
    def test_the_head_is_always_trained_and_all_is_all(self, model):
        head = trained(model, "head")
        assert head
        assert all(any(name.startswith(f"{part}.") for part in head_of(model)) for name in head)
        assert head < trained(model, "last 1 block") < trained(model, "all")
        assert sizes(model, "all") == len(list(model.parameters()))

    def test_more_blocks_layers_and_percent_are_more(self, model):
        assert trained(model, "last 1 block") < trained(model, "last 2 blocks")
        assert trained(model, "last 1 layer") < trained(model, "last 4 layers")
        assert trained(model, "last 20 %") < trained(model, "last 60 %") < trained(model, "last 100 %")
        assert trained(model, "last 100 %") == trained(model, "all")

    def test_layers_are_counted_without_the_head(self, model):
        live = trained(model, "last 3 layers") - trained(model, "head")
        owns = [
            {own for own, _ in layer.named_parameters(name, recurse=False)} for name, layer in ordered_layers(model)
        ]
        assert sum(not own.isdisjoint(live) for own in owns) == 3

    def test_names_and_several_terms(self):
        net = build_model(*(Part(name="resnet18"), 4, (16, 16, 3)))
        live = trained(net, "layer3, layer4")
        tops = {name.split(".")[0] for name in live}
        assert tops == {"layer3", "layer4", "fc"}

    @pytest.mark.parametrize(
        ("phrase", "words"),
        [("layer9", "layer4"), ("last 99 blocks", "only 8 blocks"), ("last 4000 layers", "layers before its head")],
    )
    def test_what_is_not_there_is_an_error_that_helps(self, phrase, words):
        net = build_model(*(Part(name="resnet18"), 4, (16, 16, 3)))
        with pytest.raises(RequestError, match=words):
            trained(net, phrase)


def plan_for(net, epochs=10, **section):
    return Plan(net, FinetuneSection(**section), epochs)


class TestPlan:
    def test_frozen_parts_are_in_evaluation_mode_and_get_no_gradient(self, model):
        plan = plan_for(model, train="last 1 block")
        plan.freeze(plan.stage(0).names)
        live = {name for name, p in model.named_parameters() if p.requires_grad}
        assert live == plan.stage(0).names
        for name, module in model.named_modules():
            own = [n for n, _ in module.named_parameters(prefix=name)]
            if own:
                assert module.training == any(n in live for n in own)

    def test_stages_follow_one_another(self):
        net = build_model(*(Part(name="resnet18"), 4, (16, 16, 3)))
        plan = plan_for(
            net, train="head", then=[{"epoch": 2, "train": "layer4", "lr": 0.1}, {"epoch": 5, "train": "all"}]
        )
        counts = [len(plan.stage(epoch).names) for epoch in range(7)]
        assert counts[0] == counts[1] == 2
        assert counts[2] == counts[4] > 2
        assert counts[5] == counts[6] == len(list(net.parameters()))
        assert plan.stage(3).lr == 0.1
        assert plan.ever == trained(net, "all")

    def test_gradual_unfreezing_goes_a_block_at_a_time_from_the_head(self):
        net = build_model(*(Part(name="resnet18"), 4, (16, 16, 3)))
        plan = plan_for(net, epochs=30, train="head", unfreeze_every=2)
        assert plan.stage(1).names == trained(net, "head")
        assert plan.stage(2).names == trained(net, "last 1 block")
        assert plan.stage(7).names == trained(net, "last 3 blocks")
        assert plan.stage(29).names == trained(net, "all")

    def test_rates_fall_from_the_head_down(self, model):
        plan = plan_for(model, lr_decay=0.5)
        optimizer = OPTIMIZERS.build(Part(name="sgd", lr=1.0), model)
        plan.split_rates(optimizer)
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert len(rate) == len(list(model.parameters()))
        assert all(rate[id(p)] == 1 for name in head_of(model) for p in model.get_submodule(name).parameters())
        rates = [rate[id(p)] for _, p in model.named_parameters()]
        assert min(rates) == rates[0] < 0.5
        assert {0.5, 0.25} <= set(rates)

    def test_what_is_trained_is_said(self):
        net = build_model(*(Part(name="resnet18"), 4, (16, 16, 3)))
        said = plan_for(net, train="head").describe(0)
        assert said == "1 of 41 layers, 2,052 of 11,170,884 parameters (0.018 %)"


def weights(run):
    return read_weights(run.model).tensors


def test_only_what_the_recipe_names_is_trained(tiny_recipe, tmp_path):
    first = weights(
        api.train(tiny_recipe(training={"epochs": 1}, finetune={"train": "head"}), tmp_path / "a", quiet=True)
    )
    second = weights(
        api.train(tiny_recipe(training={"epochs": 2}, finetune={"train": "head"}), tmp_path / "b", quiet=True)
    )
    for name in first:
        assert torch.equal(first[name], second[name]) == name.startswith("features."), name


def test_features_taken_once_train_the_same_head(tiny_recipe, tmp_path, monkeypatch):
    from petriscope.training import loop

    recipe = tiny_recipe(finetune={"train": "head"}, augment=[], model={"dropout": 0.0}, training={"keep": "last"})
    calls = []
    real = loop.frozen_features
    monkeypatch.setattr(loop, "frozen_features", lambda *args, **kw: calls.append(1) or real(*args, **kw))
    quick = api.train(recipe, tmp_path / "quick", quiet=True)
    assert len(calls) == 2  # train and val
    monkeypatch.setattr(loop, "frozen_features", lambda *args, **kw: None)
    slow = api.train(recipe, tmp_path / "slow", quiet=True)
    for name, value in weights(slow).items():
        torch.testing.assert_close(weights(quick)[name], value, atol=1e-4, rtol=1e-3)
    assert quick.results.val.value("accuracy") == slow.results.val.value("accuracy")


@pytest.mark.parametrize(
    "change",
    [
        {"augment": ["flip"]},
        {"finetune": {"train": "last 1 layer"}},
        {"finetune": {"train": "head", "then": [{"epoch": 1, "train": "all"}]}},
    ],
)
def test_features_are_not_kept_where_images_or_the_backbone_vary(change, tiny_recipe, tmp_path, monkeypatch):
    from petriscope.training import loop

    monkeypatch.setattr(loop, "frozen_features", lambda *args, **kw: pytest.fail("features were taken"))
    api.train(tiny_recipe(**{"augment": [], "finetune": {"train": "head"}, **change}), tmp_path / "run", quiet=True)


def test_a_stage_that_is_not_reached_is_said(tiny_recipe, tmp_path, capsys):
    stages = {"train": "head", "then": [{"epoch": 1, "train": "last 1 layer"}, {"epoch": 4, "train": "all"}]}
    api.train(tiny_recipe(finetune=stages, training={"epochs": 2}), tmp_path / "run")
    assert "warning: finetune.then has a stage from epoch 5 on, and there are 2 epochs" in capsys.readouterr().err


def test_weights_that_are_trained_later_join_those_with_a_momentum(tiny_recipe, tmp_path):
    stages = {"train": "head", "then": [{"epoch": 1, "train": "all"}]}
    run = api.train(tiny_recipe(optimizer={"name": "sgd"}, finetune=stages), tmp_path / "run", quiet=True)
    assert run.results.training.epochs == 3


def test_features_behind_dropout_are_not_kept():
    from petriscope.augment.pipeline import Normalize
    from petriscope.data.batches import Batches
    from petriscope.data.imageset import ImageSet
    from petriscope.training.frozen import frozen_features

    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(6, dtype=np.int64), ("a", "b"), np.arange(6).astype(str))
    batches, normalize = Batches(images, torch.device("cpu")), Normalize((0.5,) * 3, (0.2,) * 3)
    for rate, kept in ((0.0, True), (0.5, False)):
        net = build_model(Part(name="resnet18"), 2, (16, 16, 3))
        net.drop_rate = rate
        plan = plan_for(net, train="head")
        plan.freeze(plan.stage(0).names)
        taken = frozen_features(net, only_head_of(net), batches, normalize, "fp32")
        assert (taken is not None) == kept


@pytest.mark.parametrize(("side", "patch", "kept"), [(16, 1, True), (16, 2, False), (15, 1, False)])
def test_features_before_logits_are_resized_are_not_kept(side, patch, kept):
    from petriscope.augment.pipeline import Normalize
    from petriscope.data.batches import Batches
    from petriscope.data.imageset import ImageSet
    from petriscope.training.frozen import frozen_features

    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 1), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros((3, side, side), dtype=np.uint8), ("a", "b"), np.arange(3).astype(str))
    batches, normalize = Batches(images, torch.device("cpu")), Normalize((0.5,), (0.2,))
    net = build_model(Part(name="unet", widths=[4, 8], patch=patch), 2, (side, side, 1))
    plan = plan_for(net, train="head")
    plan.freeze(plan.stage(0).names)
    taken = frozen_features(net, only_head_of(net), batches, normalize, "fp32", quiet=True)
    assert (taken is not None) == kept


class TestDistillation:
    def test_a_student_learns_its_teachers_answers(self, tiny_recipe, tmp_path):
        teacher = api.train(tiny_recipe(training={"epochs": 12}), tmp_path / "teacher", quiet=True)
        section = {"teachers": str(teacher.folder), "weight": 1.0}
        student = api.train(
            tiny_recipe(distill=section, seed=5, training={"epochs": 12}), tmp_path / "student", quiet=True
        )
        assert student.results.val.value("accuracy") >= 0.95
        agree = lambda run: api.evaluate(run.folder, split="val", quiet=True).value("accuracy")  # noqa: E731
        assert agree(student) >= agree(teacher) - 0.05

    def test_the_loss_is_the_divergence_of_softened_answers(self):
        from petriscope.training.distillation import Teachers

        teachers = Teachers.__new__(Teachers)
        teachers.weight, teachers.temperature = 0.25, 3.0
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        answer = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)).softmax(1)
        p = (logits / 3).softmax(1)
        divergence = (answer * (answer.log() - p.log())).sum(1).mean() * 9
        loss = teachers.loss(logits, answer, torch.tensor(2.0))
        assert loss.item() == pytest.approx((0.75 * 2 + 0.25 * divergence).item(), rel=1e-5)
        assert teachers.loss((answer.log() * 3), answer, torch.tensor(0.0)).item() == pytest.approx(0, abs=1e-5)

    def test_a_teacher_of_other_classes_or_shapes_is_refused(self, tiny_recipe, tmp_path):
        teacher = api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "teacher", quiet=True)
        recipe = tiny_recipe(distill={"teachers": [str(teacher.folder)]}, data={"size": 16})
        with pytest.raises(RequestError, match="takes images of"):
            api.train(recipe, tmp_path / "student", quiet=True)
        recipe = tiny_recipe(distill={"teachers": [str(teacher.folder)]}, data={"classes": ["dark", "bright"]})
        with pytest.raises(RequestError, match="has the classes"):
            api.train(recipe, tmp_path / "student", quiet=True)
        recipe = tiny_recipe(distill={"teachers": [str(teacher.folder)]}, data={"standardize": ["background"]})
        with pytest.raises(
            RequestError, match=r"data\.standardize of .* is \[\], but that of the recipe is \['background'\]"
        ):
            api.train(recipe, tmp_path / "student", quiet=True)
        with pytest.raises(RequestError, match="no model"):
            api.train(tiny_recipe(distill={"teachers": "nowhere"}), tmp_path / "student", quiet=True)
        assert not (tmp_path / "student").exists()


@pytest.mark.slow
def test_weights_of_another_run_are_a_start_and_its_statistics_are_kept(tiny_recipe, tmp_path):
    backbone = {"name": "timm/resnet10t"}
    small = {"augment": [], "training": {"epochs": 1}, "data": {"size": 32}}
    first = api.train(tiny_recipe(model=backbone, **small), tmp_path / "first", quiet=True)
    start = {**backbone, "weights": str(first.model)}
    second = api.train(tiny_recipe(model=start, finetune={"train": "head"}, **small), tmp_path / "second", quiet=True)
    before, after = weights(first), weights(second)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name for name in moved if "fc." not in name} == set()
    first.model.unlink()  # a trained model needs its own file alone
    assert api.evaluate(second.folder, split="val", quiet=True).n == 40


def test_a_run_goes_on_without_the_weights_it_began_with(tiny_recipe, tmp_path, monkeypatch):
    model = {"name": "autoencoder", "widths": [4, 8], "hidden": 8}
    first = api.train(tiny_recipe(model=model, training={"epochs": 1}), tmp_path / "first", quiet=True)
    recipe = tiny_recipe(model={**model, "weights": str(first.model)})
    whole = api.train(recipe, tmp_path / "whole", quiet=True)
    steps, count = Trainer.train_step, iter(range(1000))

    def killed(self, images, targets):
        if next(count) == 8:
            raise RuntimeError("killed")
        return steps(self, images, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            api.train(recipe, tmp_path / "broken", quiet=True)
    first.model.unlink()
    resumed = api.resume(tmp_path / "broken", quiet=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_normalization_is_that_of_the_weights_or_as_the_recipe_says(tiny_recipe, tmp_path):
    model = {"name": "autoencoder", "widths": [4, 8], "hidden": 8}
    quick = {"training": {"epochs": 1}}
    first = api.train(tiny_recipe(model=model, **quick), tmp_path / "first", quiet=True)
    facts = load_model(first.model)
    start = {**model, "weights": str(first.model)}
    other = {"source": "synthetic-smear:60", "size": 12}
    taken = api.train(tiny_recipe(model=start, data=other, **quick), tmp_path / "taken", quiet=True)
    own = api.train(
        tiny_recipe(model=start, data={**other, "normalize": "train"}, **quick), tmp_path / "own", quiet=True
    )
    net = api.train(tiny_recipe(data={"normalize": "imagenet"}, **quick), tmp_path / "imagenet", quiet=True)
    assert load_model(taken.model).mean == facts.mean
    assert load_model(own.model).mean != facts.mean
    assert load_model(net.model).mean == (0.485, 0.456, 0.406)


def test_published_weights_take_red_green_and_blue_first(tmp_path, capsys):
    path = tmp_path / "published.safetensors"
    save_file(build_model(Part(name="timm/test_resnet"), 1000, (32, 32, 3)).state_dict(), path)
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (4, 32, 32, 4), dtype=np.uint8) for split in ("train", "val")}
    np.savez(tmp_path / "four.npz", **arrays, train_labels=np.arange(4) % 2, val_labels=np.arange(4) % 2)

    def built(*channels):
        tree = {
            "data": {"source": str(tmp_path / "four.npz"), "channels": channels},
            "model": {"name": "timm/test_resnet", "weights": str(path)},
        }
        recipe = check_recipe(tree)
        build_trainer(recipe, load_dataset(recipe.data), torch.device("cpu"), quiet=False)
        return capsys.readouterr().err

    assert "they take DAPI as red, GFP as green, RFP as blue, Cy5 as red" in built("DAPI", "GFP", "RFP", "Cy5")
    assert "infrared as red" in built("red", "green", "blue", "infrared")
    with pytest.raises(RequestError, match="red, green and blue first"):
        built("infrared", "red", "green", "blue")
