"""petriscope explain, end to end."""

import shutil

import numpy as np
import pytest
from PIL import Image

from petriscope import api, cli
from petriscope.core.errors import RequestError


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("explain") / "run"


@pytest.fixture
def run(kept, tiny_recipe, tmp_path):
    """A run folder, trained once for all tests."""
    if not kept.exists():
        api.train(tiny_recipe(training={"epochs": 1}), kept, quiet=True)
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_overlays_and_a_page(run, images, tmp_path):
    out = tmp_path / "out"
    table = api.explain(run, [images], out, of="1", method="occlusion", quiet=True)
    assert table["explained"].tolist() == ["1"] * 3
    assert {path.name for path in out.iterdir()} == {"index.html", "00001-0.png", "00002-1.png", "00003-2.png"}
    with Image.open(out / "00001-0.png") as image:
        assert image.size == (216, 216) and image.mode == "RGB"
    predicted = api.predict(run, [images], quiet=True)
    assert table["predicted"].tolist() == predicted["predicted"].tolist()
    np.testing.assert_allclose(table["confidence"], predicted["confidence"])
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("for 1</figcaption>") == 3
    verdict = api.open_run(run).results.val.explanations.check.methods["occlusion"].verdict
    assert verdict in page


def test_the_command_reports_unreadable_images_and_explains_the_rest(run, images, tmp_path, monkeypatch, capsys):
    (images / "bad.png").write_bytes(b"nothing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["petriscope", "explain", "run", "new", "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert out.strip() == "out/index.html"
    assert "1 of 4 images" in err and "bad.png" in err
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "7"}, "no class '7'"),
        ({"method": "attention-rollout"}, "use hires-cam"),
        ({"method": "occlusio"}, "did you mean occlusion"),
        ({"out": "run"}, "not empty"),
    ],
)
def test_a_wrong_request_leaves_nothing(run, images, tmp_path, options, words):
    out = tmp_path / options.pop("out", "out")
    with pytest.raises(RequestError, match=words):
        api.explain(run, [images], out, quiet=True, **options)
    assert not (tmp_path / "out").exists()


def test_nothing_readable_makes_no_page(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    table = api.explain(run, [tmp_path / "bad.png"], tmp_path / "out", quiet=True)
    assert table["error"].notna().all()
    assert not (tmp_path / "out").exists()
