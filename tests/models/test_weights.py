"""Weights from files and from timm's hub, without a network."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.recipe import Part
from petriscope.models import build_model, weights
from petriscope.models.backbones import import_timm

SHAPE = (32, 32, 3)
SMALL = "timm/resnet10t"
FIRST = "conv1.0.weight"  # its first convolution


def make(name=SMALL, classes=3, shape=SHAPE, fresh=True, **options):
    torch.manual_seed(1)
    return build_model(Part(name=name, **options), classes, shape, fresh)


def save(path, state, **facts):
    metadata = {"petriscope": json.dumps(facts)} if facts else None
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata=metadata)
    return str(path)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as timm would publish: 1000 classes, RGB."""
    torch.manual_seed(0)
    state = import_timm().create_model("resnet10t").state_dict()
    return save(tmp_path_factory.mktemp("weights") / "resnet10t.safetensors", state), state


def assert_taken_over(model, state, prefix="", besides=()):
    own = model.state_dict()
    for key, tensor in state.items():
        if key not in besides:
            assert torch.equal(own[prefix + key], tensor), key


HEAD = ("fc.weight", "fc.bias")


class TestFiles:
    def test_all_but_a_head_of_other_classes_is_taken_over(self, published):
        path, state = published
        model = make(weights=path)
        assert_taken_over(model, state, besides=HEAD)
        assert torch.equal(model.fc.weight, make().fc.weight)
        assert model.expects == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert make().expects is None

    def test_a_head_of_as_many_classes_is_taken_over(self, published):
        path, state = published
        assert_taken_over(make(classes=1000, weights=path), state)

    def test_gray_images_get_the_sum_over_the_colors(self, published):
        path, state = published
        model = make(shape=(32, 32, 1), weights=path)
        torch.testing.assert_close(model.state_dict()[FIRST], state[FIRST].sum(1, keepdim=True))
        assert model.expects == ((pytest.approx(0.449),), (pytest.approx(0.226),))

    @pytest.mark.parametrize("options", [{"resize": 48}, {"head": "se-mlp"}, {"head": "se-mlp", "resize": 48}])
    def test_they_reach_a_network_within(self, published, options):
        path, state = published
        assert_taken_over(make(weights=path, **options), state, "backbone.", HEAD)

    def test_a_head_on_the_feature_maps_does_without_the_layers_behind_them(self, tmp_path):
        with torch.device("meta"):
            whole = make("mobilenet-v3-large", head="linear", fresh=False)
        state = {key: torch.zeros(tensor.shape) for key, tensor in whole.state_dict().items()}
        path = save(tmp_path / "m.safetensors", state)
        model = make("mobilenet-v3-large", head="se-mlp", weights=path)
        assert model.backbone.conv_stem.weight.abs().sum() == 0
        assert not any(key.startswith("backbone.conv_head") for key in model.state_dict())

    def test_a_model_file_of_petriscope_brings_its_normalization_and_its_head(self, tmp_path):
        first = make(head="se-mlp")
        path = save(tmp_path / "run.safetensors", first.state_dict(), mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
        torch.manual_seed(5)
        again = build_model(Part(name=SMALL, head="se-mlp", weights=path), 3, SHAPE)
        assert_taken_over(again, first.state_dict())
        assert again.expects == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
        plain = make(weights=path)
        assert_taken_over(plain, first.backbone.state_dict(), besides=HEAD)

    def test_small_stem_from_a_model_file(self, tmp_path):
        first = make("resnet18")
        path = save(tmp_path / "run.safetensors", first.state_dict(), mean=[0.1] * 3, std=[1.0] * 3)
        again = make("resnet18", classes=5, weights=path, attention="se")
        assert_taken_over(again, first.state_dict(), besides=HEAD)

    def test_two_stages_of_the_autoencoder(self, tmp_path):
        first = make("autoencoder", encoder_learns="reconstruction")
        path = save(tmp_path / "run.safetensors", first.state_dict(), mean=[0.1] * 3, std=[1.0] * 3)
        second = make("autoencoder", classes=7, weights=path, reconstruction=0)
        assert_taken_over(second, {k: v for k, v in first.state_dict().items() if not k.startswith("head.")})
        assert second.expects == ((0.1,) * 3, (1.0,) * 3)

    def test_positions_of_a_transformer_are_resampled(self, tmp_path):
        torch.manual_seed(0)
        state = import_timm().create_model("deit_tiny_patch16_224").state_dict()
        path = save(tmp_path / "deit.safetensors", state)
        model = make("deit-tiny", resize=64, weights=path)
        assert model.backbone.pos_embed.shape == (1, 1 + 4 * 4, 192)
        assert_taken_over(model, state, "backbone.", ("pos_embed", "head.weight", "head.bias"))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda s: s.pop("layer1.0.conv1.weight"), r"missing: layer1\.0\.conv1\.weight"),
            (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"unexpected: extra\.weight"),
            (lambda s: s.update({"bn1.bias": torch.zeros(7)}), r"shape: bn1\.bias \[7\] where the model has \[64\]"),
        ],
    )
    def test_what_does_not_fit_is_named(self, published, tmp_path, change, says):
        state = dict(published[1])
        change(state)
        with pytest.raises(RequestError, match=says):
            make(weights=save(tmp_path / "w.safetensors", state))

    @pytest.mark.parametrize("name", ["resnet18", "convnext-tiny", "deit-tiny"])
    def test_weights_of_another_network_are_refused(self, published, name):
        with pytest.raises(RequestError, match="does not fit this model"):
            make(name, weights=published[0])

    def test_a_file_that_is_none(self, tmp_path):
        with pytest.raises(RequestError, match="no file"):
            make(weights=str(tmp_path / "none.safetensors"))
        (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
        with pytest.raises(RequestError, match="cannot be read"):
            make(weights=str(tmp_path / "bad.safetensors"))
        with pytest.raises(RequestError, match="none, pretrained or the path"):
            make(weights="imagenet")
        with pytest.raises(RequestError, match="none or the path"):
            make("autoencoder", weights="pretrained")

    def test_a_model_that_loads_its_own_weights_needs_no_file(self):
        model = make(weights="/nowhere/gone.safetensors", fresh=False)
        assert model.expects is None


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet-v3-large",
        "convnext-tiny",
        "deit-tiny",
        "resnet18",
        "timm/vgg11",
        "timm/efficientnet_b0",
        "timm/swin_tiny_patch4_window7_224",
    ],
)
def test_a_head_on_the_feature_maps_leaves_no_weight_unused(name):
    with torch.device("meta"):
        model = make(name, shape=(224, 224, 3), head="se-mlp", hidden=[8, 4], drop_rate=0.1)
        logits = model(torch.zeros(2, 3, 224, 224))
    logits.sum().backward()
    assert logits.shape == (2, 3)
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    kinds = [type(layer).__name__ for layer in model.head.dense]
    assert kinds == ["Linear", "SiLU", "BatchNorm1d", "Dropout"] * 2


def test_resizing_is_that_of_the_image():
    plain, resized = make(shape=(64, 64, 3)).eval(), make(resize=64).eval()
    resized.backbone.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    large = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(resized(images), plain(large))


class TestHub:
    def test_offline_it_fails_within_seconds_and_says_what_to_do(self, monkeypatch, tmp_path):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(weights, "reachable", lambda address: False)
        import_timm()  # which takes seconds of its own
        start = time.monotonic()
        with pytest.raises(PetriscopeError, match=r"model\.safetensors from .*resnet10t.* model\.weights=PATH\.safet"):
            make(weights="pretrained")
        assert time.monotonic() - start < 5

    def test_an_address_that_does_not_answer_is_out_of_reach(self, monkeypatch):
        for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        assert not weights.reachable("http://127.0.0.1:9")

        def late(*_, **__):
            time.sleep(60)
            raise OSError("too late for anyone to hear")

        monkeypatch.setattr(weights.urllib.request, "urlopen", late)
        monkeypatch.setattr(weights, "PROBE_SECONDS", 0.1)
        assert not weights.reachable("http://127.0.0.1:9")

    def test_what_is_in_the_cache_needs_no_network(self, published, monkeypatch):
        import huggingface_hub

        path, state = published
        asked = []
        monkeypatch.setattr(
            huggingface_hub,
            "try_to_load_from_cache",
            lambda *names, revision: asked.append(names) or path,
            raising=False,
        )
        assert_taken_over(make(weights="pretrained"), state, besides=HEAD)
        assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]

    def test_a_file_is_taken_at_its_first_revision_and_checked(self, monkeypatch, tmp_path):
        import huggingface_hub

        hub, asked = {"main": b"weights", "abc": b"weights"}, []

        def cached(repository, filename, revision):
            path = tmp_path / "hub" / "snapshots" / "abc" / filename
            return str(path) if path.exists() else None

        def download(repository, filename, revision):
            asked.append(revision)
            path = tmp_path / "hub" / "snapshots" / "abc" / filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hub[revision or "main"])
            return str(path)

        monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached, raising=False)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download, raising=False)
        monkeypatch.setattr(weights, "reachable", lambda address: True)

        def fetch():
            return weights.from_hub("timm/net", "model.safetensors", "timm/net")

        first = fetch()
        assert fetch() == first and asked == [None]
        first.unlink()
        hub["main"] = b"other weights"  # the hub has moved on
        assert fetch().read_bytes() == b"weights" and asked == [None, "abc"]
        first.write_bytes(b"forged")
        with pytest.raises(PetriscopeError, match=r"timm/net.*is not the file that was used before.*SHA-256"):
            fetch()
        first.unlink()
        hub["abc"] = b"forged too"
        with pytest.raises(PetriscopeError, match="SHA-256"):
            fetch()
        (record,) = (tmp_path / "cache" / "hub").iterdir()
        record.write_text("{")
        with pytest.raises(PetriscopeError, match="delete it to record"):
            fetch()

    def test_the_small_stem_has_no_pretrained_weights(self):
        with pytest.raises(RequestError, match=r"model\.stem=imagenet"):
            make("resnet18", weights="pretrained")

    def test_a_network_without_published_weights(self):
        with pytest.raises(RequestError, match="no pretrained weights"):
            make("timm/darknet17", weights="pretrained")
