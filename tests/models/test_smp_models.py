"""Networks of segmentation_models_pytorch: sizes, weights, and what is said where the library is missing."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.models import build_model, smp_models

NAME = "smp/linknet-resnet18"


def build(channels=1, size=(32, 32), **options):
    torch.manual_seed(0)
    return build_model(Part(name=options.pop("name", NAME), **options), 3, (*size, channels))


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(RequestError, match=r"pip install 'petriscope\[masks\]'"):
        build()


class TestWithTheLibrary:
    @pytest.fixture(autouse=True)
    def library(self):
        smp_models.import_timm()
        pytest.importorskip("segmentation_models_pytorch")

    def test_any_size(self):
        model = build(size=(40, 50)).eval()
        assert model(torch.randn(1, 1, 40, 50)).shape == (1, 3, 40, 50)

    def test_an_encoder_of_timms(self):
        model = build(name="smp/linknet-tu-resnet10t").eval()
        assert model(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)

    def encoder_file(self, folder):
        torch.manual_seed(7)
        encoder = build(channels=3).network.encoder.state_dict()
        file = folder / "encoder.safetensors"
        save_file(
            {key: torch.rand_like(t, dtype=t.dtype) if t.is_floating_point() else t for key, t in encoder.items()}, file
        )
        return file

    @pytest.mark.parametrize("channels", [1, 3])
    def test_weights_of_an_encoder_are_taken_and_made_gray(self, tmp_path, channels):
        from safetensors.torch import load_file

        file = self.encoder_file(tmp_path)
        given, own = load_file(file), build(channels, weights=str(file)).network.encoder.state_dict()
        first = given.pop("conv1.weight")
        expected = first.sum(1, keepdim=True) if channels == 1 else first
        torch.testing.assert_close(own["conv1.weight"], expected)
        assert all(torch.equal(own[key], tensor) for key, tensor in given.items())

    def test_weights_of_a_whole_model(self, tmp_path):
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        facts = {"petriscope": json.dumps({"mean": [0.25], "std": [0.5]})}
        save_file(model.state_dict(), tmp_path / "model.safetensors", facts)
        loaded = build(weights=str(tmp_path / "model.safetensors"))
        assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
        assert loaded.expects == ((0.25,), (0.5,))

    def test_pretrained_weights_come_from_the_hub_with_what_they_expect(self, tmp_path, monkeypatch):
        (tmp_path / "config.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.2]}))
        self.encoder_file(tmp_path).rename(tmp_path / "model.safetensors")
        asked = []

        def hub(repository, filename, label):
            asked.append((repository, filename, label))
            return tmp_path / filename

        monkeypatch.setattr(smp_models, "from_hub", hub)
        model = build(weights="pretrained")
        assert {repository for repository, _, _ in asked} == {"smp-hub/resnet18.imagenet"}
        assert model.expects == ((pytest.approx(0.2),), (pytest.approx(0.2),))
        assert model.network.encoder.state_dict()["conv1.weight"].min() >= 0  # the file's are from 0 to 1

    def test_weights_that_do_not_fit(self, tmp_path):
        save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
        with pytest.raises(RequestError, match="does not fit the encoder resnet18"):
            build(weights=str(tmp_path / "odd.safetensors"))
        with pytest.raises(RequestError, match=r"encoders tu-\.\.\. take only"):
            build(name="smp/linknet-tu-resnet10t", weights=str(tmp_path / "odd.safetensors"))
        with pytest.raises(RequestError, match="no ImageNet weights of tu-resnet10t"):
            build(name="smp/linknet-tu-resnet10t", weights="pretrained")

    def test_a_runs_model_is_built_without_its_starting_weights(self):
        part = Part(name=NAME, weights="nowhere.safetensors")
        assert build_model(part, 3, (32, 32, 1), fresh=False).dense
