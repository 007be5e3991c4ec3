"""The notebook is executed by a kernel, as a user does it, and then stopped and asked for what is not there."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.slow

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
WRONG = 'petriscope.load_recipe("demmo")'
STOPPED = """
import os, signal, threading
stop = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
stop.start()
petriscope.train(petriscope.load_recipe("demo", ["data.source=synthetic-smear:200", "training.epochs=5000"]), "stopped")
"""
STOPPED_PREDICTION = """
import numpy as np
from pathlib import Path
from petriscope.inference import decoding
read, files = decoding.read_file, iter(range(1000))
def interrupted(*given):
    if next(files) == 600:
        print(len(list(Path.cwd().glob("*all*"))))
        os.kill(os.getpid(), signal.SIGINT)
    return read(*given)
decoding.read_file = interrupted
petriscope.predict(run, np.zeros((1000, 28, 28, 3), np.uint8), out="all.csv")
"""
STOPPED_EVALUATION = """
from petriscope.trust import robustness
begun = robustness.predict_corrupted
def stopped(*given):
    robustness.predict_corrupted = begun
    os.kill(os.getpid(), signal.SIGINT)
    return begun(*given)
robustness.predict_corrupted = stopped
petriscope.evaluate(run, stress=True)
"""
THEN = """
decoding.read_file = read
tested = petriscope.evaluate(run, stress=True).stress is not None
predicted = petriscope.predict(run, np.zeros((2, 28, 28, 3), np.uint8), quiet=True)
print(sorted(path.name for path in Path.cwd().glob("*all*")), len(predicted), tested)
"""
IMPORTS = "from petriscope.experiments.candidates import has_weights; _ = has_weights()"
ON = 'print(petriscope.open_run("stopped").checkpoint.is_file(), petriscope.open_run("stopped").finished)'
LONG = """
from petriscope.core import progress
progress.SHOW_AFTER = progress.IN_NOTEBOOK_EVERY = 0
with progress.progress("counting <b>", 10) as bar:
    bar.advance(4)
    progress.say("a line & more")
    bar.advance(1, "so far")
    print("held")
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The cells of the tutorial and of this test, executed: what each shows, by its code."""
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = nbformat.read(TUTORIAL, 4)
    notebook.cells += map(
        nbformat.v4.new_code_cell, (WRONG, STOPPED, ON, STOPPED_PREDICTION, STOPPED_EVALUATION, THEN, LONG, IMPORTS)
    )
    sent = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, cell_index):
            sent.append((cell.source, msg["msg_type"], msg["content"]))
            return super().process_message(msg, cell, cell_index)

    client = Client(notebook, timeout=280, allow_errors=True, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}, sent


def html(outputs):
    return "".join(output.data["text/html"] for output in outputs if "data" in output)


def test_the_tutorial_runs_and_holds_no_outputs(cells):
    tutorial = nbformat.read(TUTORIAL, 4)
    code = [cell for cell in tutorial.cells if cell.cell_type == "code"]
    nbformat.validate(tutorial)
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        kinds = [output.output_type for output in cells[0][cell.source]]
        assert "error" not in kinds and "stream" not in kinds, cells[0][cell.source]


def test_a_training_has_one_output_that_ends_without_bars(cells):
    (output,) = next(outputs for code, outputs in cells[0].items() if "train(recipe)" in code)
    assert output.output_type == "display_data"
    assert "epoch 6 of 6" in output.data["text/html"] and "epoch 6 of 6" in output.data["text/plain"]
    assert "<progress" not in output.data["text/html"]


def test_bars_and_lines_are_one_output_that_is_written_anew(cells):
    kept, printed = cells[0][LONG]
    shown = [
        content["data"]["text/html"]
        for code, kind, content in cells[1]
        if code == LONG and kind.endswith("display_data")
    ]
    assert printed.text == "held\n"
    assert "counting &lt;b&gt;" in shown[0] and "value=4 max=10" in shown[0]
    assert "a line &amp; more" in shown[1] and "value=4" in shown[1]
    assert "value=5" in shown[2] and "so far" in shown[2] and "a line" in shown[2]
    assert kept.data["text/html"] == shown[-1] and "<progress" not in shown[-1] and "a line" in shown[-1]


def test_runs_and_predictions_and_the_report_are_shown(cells):
    of = {code: html(outputs) for code, outputs in cells[0].items()}
    assert "<table>" in of["run"] and "val images" in of["run"] and "not been evaluated" in of["run"]
    evaluated = next(shown for code, shown in of.items() if "evaluate(run" in code)
    assert "120 test images" in evaluated and "<table>" in evaluated
    predicted = next(shown for code, shown in of.items() if "predict(run" in code)
    assert predicted.count("data:image/png") == 6 and "image-5" in predicted
    assert "data:image/png" in next(shown for code, shown in of.items() if "not sure" in code)
    report = of["petriscope.report(run)"]
    accuracy = re.search(r"\d+\.\d\d\s%", evaluated)[0]
    assert "<iframe" in report and accuracy.replace("\N{NO-BREAK SPACE}", " ") in report


def test_libraries_do_not_ask_for_packages_that_draw_bars(cells):
    assert cells[0][IMPORTS] == []


def test_errors_are_a_sentence_and_the_line_of_the_user(cells):
    (output,) = cells[0][WRONG]
    assert output.traceback[0].startswith("RequestError: no recipe 'demmo'; did you mean demo?")
    assert output.traceback[1:] == [f"  in: {WRONG}"]


def test_a_training_that_is_stopped_says_how_to_go_on(cells):
    *_, error = cells[0][STOPPED]
    assert error.traceback[0] == "Interrupted: stopped; to continue: petriscope.resume('stopped')"
    assert len(error.traceback) == 2 and error.traceback[1].startswith("  in: petriscope.train(")
    (printed,) = cells[0][ON]
    assert printed.text == "True False\n"


@pytest.mark.parametrize("cell", [STOPPED_PREDICTION, STOPPED_EVALUATION], ids=["predict", "evaluate"])
def test_what_is_stopped_ends_with_a_sentence_and_leaves_no_half_written_file(cells, cell):
    *shown, error = cells[0][cell]
    if cell == STOPPED_PREDICTION:
        assert shown.pop(0).text == "1\n", "the table is being written"
    assert error.traceback[0] == "Interrupted: stopped before it was done; the same call begins anew"
    assert len(error.traceback) == 2 and "<progress" not in html(shown)
    assert cells[0][THEN][-1].text == "[] 2 True\n"
