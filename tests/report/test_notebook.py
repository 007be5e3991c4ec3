"""What a notebook shows: the numbers of the page, images beside predictions, and nothing from outside as HTML."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from petriscope import api
from petriscope.report.notebook import MOST_BYTES, Report
from petriscope.run.folder import open_run

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, one of them with a name that is HTML."""
    root = tmp_path_factory.mktemp("notebook") / "images"
    rng = np.random.default_rng(0)
    for name, base in (("dark <i>", 0), ("light", 120)):
        (root / name).mkdir(parents=True)
        for k in range(30):
            pixels = rng.integers(base, base + 100, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def run(folder):
    from petriscope.core.recipe import load_recipe

    recipe = load_recipe(
        "demo",
        [
            "model.widths=[4,4,4]",
            "model.hidden=4",
            "training.epochs=2",
            "training.batch_size=8",
            "evaluation.stress=off",
        ],
        data={"source": str(folder)},
        evaluation={"bootstrap": 100, "stress": "off"},
    )
    return api.train(recipe, folder.parent / "run", quiet=True)


def test_a_run_shows_the_metrics_of_its_page(run):
    shown, page = run._repr_html_(), (run.folder / "report.html").read_text(encoding="utf-8")
    values = re.findall(r">(\d+\.\d+(?: %)?)(?: \(|<)", shown)
    assert len(values) >= 5
    for value in values:
        assert value in page.replace("\N{NO-BREAK SPACE}", " "), value
    assert "dark <i>" not in shown
    assert "have not been evaluated yet" in shown and f"petriscope evaluate {run.folder}" in shown


def test_an_evaluation_shows_its_metrics(run):
    found = api.evaluate(run.folder, split="val", quiet=True)
    shown = found._repr_html_()
    assert shown.startswith("<table>") and "val images" in shown
    assert f"{100 * found.value('accuracy'):.2f} %" in shown.replace("\N{NO-BREAK SPACE}", " ")


def test_a_link_leads_to_pages_below_the_current_folder_alone(run, monkeypatch):
    assert "<a href" not in run._repr_html_()
    monkeypatch.chdir(run.folder.parent)
    assert '<a href="run/report.html"' in run._repr_html_()


def test_a_damaged_run_shows_a_sentence(run, tmp_path):
    for name in ("recipe.yaml", "environment.json"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    (tmp_path / "results.json").write_text("{")
    assert "results.json" in open_run(tmp_path)._repr_html_()


def test_a_report_is_shown_unless_it_is_too_large(run, tmp_path):
    found = api.report(run)
    assert found.path == run.folder / "report.html" and str(found) == str(found.path)
    shown = found._repr_html_()
    assert shown.startswith("<iframe sandbox=") and "&lt;!DOCTYPE html&gt;" in shown and "dark <i>" not in shown
    large = tmp_path / "report.html"
    large.write_bytes(b" " * (MOST_BYTES + 1))
    assert "<iframe" not in Report(large)._repr_html_() and "16 MiB" in Report(large)._repr_html_()
    assert "cannot be shown" in Report(tmp_path / "none.html")._repr_html_()


def test_predictions_are_shown_with_their_images(run, folder, tmp_path):
    (tmp_path / f"{EVIL.replace('/', '')}.png").write_bytes((folder / "light" / "0.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    table = api.predict(run, [folder / "light", tmp_path], quiet=True)
    assert isinstance(table, pd.DataFrame) and len(table) == 32
    shown = table._repr_html_()
    assert shown.count("<img") == 20 and "12 more images in the table" in shown
    last = table.tail(2)._repr_html_()
    assert last.count("<img") == 1 and "<script>" not in last and "&lt;script&gt;" in last and "cannot be read" in last
    first = table.iloc[0]
    assert f"{100 * first.confidence:.1f} %".replace(" ", "\N{NO-BREAK SPACE}") in shown
    assert "dark &lt;i&gt;" in shown and "dark <i>" not in shown


def test_what_is_made_of_predictions_is_a_table(run, folder):
    table = api.predict(run, folder / "light", quiet=True)
    assert "<img" not in table[["predicted", "confidence"]]._repr_html_()
    assert "<img" in table.sort_values("confidence")._repr_html_()
    read = pickle.loads(pickle.dumps(table))
    assert type(read) is pd.DataFrame and read.equals(pd.DataFrame(table))


def test_images_that_are_gone_are_left_out(run, folder, tmp_path):
    image = tmp_path / "gone.png"
    image.write_bytes((folder / "light" / "0.png").read_bytes())
    table = api.predict(run, image, quiet=True)
    image.unlink()
    assert "<img" not in table._repr_html_() and "gone.png" in table._repr_html_()


def test_a_stop_after_training_leaves_a_run_that_goes_on(run, tmp_path, monkeypatch):
    from petriscope.core.errors import Interrupted
    from petriscope.experiments import auto
    from petriscope.experiments import train as module

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="petriscope train --resume"):
        patched.setattr(module, "evaluate_into", stop)
        api.train(run.recipe, tmp_path / "again", quiet=True)
    again = api.resume(tmp_path / "again", quiet=True)
    assert again.results.val.metrics == run.results.val.metrics
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="nothing was made"):
        patched.setattr(module, "load_dataset", stop)
        api.train(run.recipe, tmp_path / "none", quiet=True)
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="nothing was made"):
        patched.setattr(auto, "plan", stop)
        api.train(data="digits", out=tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()
