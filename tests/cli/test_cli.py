"""The command line as a process: what it imports, exit status, renamed options."""

import os
import subprocess
import sys

import pytest

from petriscope import __version__
from petriscope.cli import OLD_OPTIONS
from petriscope.core.errors import Interrupted, PetriscopeError, RequestError


@pytest.mark.parametrize(("args", "says"), [(["--help"], "train"), (["--version"], f"petriscope {__version__}\n")])
def test_help_and_version_import_nothing_heavy(args, says):
    code = f"import sys\nfrom petriscope import cli\nsys.argv = ['petriscope', *{args}]\n"
    code += "try:\n    cli.main()\nexcept SystemExit as left: assert not left.code\n"
    code += "assert not {'torch', 'numpy', 'pandas', 'pydantic', 'yaml'} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout and done.stderr == ""


def test_a_process_ends_with_the_status_of_its_error(tmp_path):
    command = [sys.executable, "-m", "petriscope", "report", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: nowhere is not a run folder")


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (RequestError("wrong"), 2, "error: wrong\n"),
        (PetriscopeError("failed"), 1, "error: failed\n"),
        (Interrupted("stopped"), 130, "error: stopped\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_error_has_its_exit_status(petriscope, monkeypatch, error, status, says):
    def fail(folder):
        raise error

    monkeypatch.setattr("petriscope.api.report", fail)
    assert petriscope("report", "run") == (status, "", says)


def test_several_settings_after_one_option_are_explained(petriscope):
    status, _, err = petriscope("train", "demo", "--set", "training.epochs=1", "seed=16")
    assert status == 2
    assert "write it before each: --set training.epochs=1 --set seed=16" in err


@pytest.mark.parametrize("old", OLD_OPTIONS)
def test_a_renamed_option_is_refused_with_its_new_name(petriscope, old):
    for words in ([old, "1"], [f"{old}=1"]):
        status, out, err = petriscope("evaluate", "run", *words)
        assert status == 2 and out == "" and err.startswith("error: ")
        assert OLD_OPTIONS[old] in err


@pytest.mark.parametrize(
    ("name", "told"), [("evaluate", True), ("predict", True), ("data", False), ("train", False), ("x", False)]
)
def test_a_command_without_set_says_so_where_a_message_asks_for_it(petriscope, monkeypatch, name, told):
    def fail(words):
        raise RequestError("1 image cannot be read; leave it out with --set data.unreadable=skip")

    monkeypatch.setattr("petriscope.cli._check_options", fail)
    status, _, said = petriscope(name, "cells")
    assert status == 2 and (f"skip. {name} has no --set" in said) == told
