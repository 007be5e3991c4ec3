"""A search whose processes share a database of PostgreSQL, as on several machines."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from petriscope.core.errors import RequestError
from petriscope.experiments.tune import tune

pytest.importorskip("optuna")
pytest.importorskip("psycopg")
SPACE = {"optimizer.lr": {"low": 1e-3, "high": 0.1, "log": True}, "model.hidden": {"low": 4, "high": 16}}


def programs():
    """The folder of PostgreSQL's programs; None if it is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def user():
    """A user that the server may run as, which root is not; None if there is none."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    return next((each.pw_name for each in pwd.getpwall() if each.pw_name == "postgres"), None)


@pytest.fixture(scope="module")
def server():
    """The URL of a database on a server of its own."""
    place, owner = programs(), user()
    if place is None or owner is None:
        pytest.skip("PostgreSQL is not installed, or there is no user for it: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a short path, as its socket needs
    other = {} if os.geteuid() != 0 else {"user": owner, "group": pwd.getpwnam(owner).pw_gid}
    shutil.chown(folder, owner)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*words):
        return subprocess.run([str(place / words[0]), *words[1:]], cwd=folder, capture_output=True, check=True, **other)

    call("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "tuner", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("pg_ctl", "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://tuner@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_processes_share_a_study_in_postgresql(server, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = tune(tiny_recipe(), SPACE, tmp_path / "shared", trials=5, best=0, jobs=2, storage=server, quiet=True)
    assert [each.number for each in found.trials] == list(range(5))
    assert all(each.state in ("finished", "stopped") for each in found.trials)
    assert not (tmp_path / "shared" / "study.db").exists()

    # Another machine has a folder of its own, and the same study.
    elsewhere = tmp_path / "elsewhere" / "shared"
    more = tune(tiny_recipe(), SPACE, elsewhere, trials=7, best=0, storage=server, quiet=True)
    assert [each.number for each in more.trials] == list(range(7))
    assert sorted(path.name for path in (elsewhere / "trials").iterdir() if path.is_dir()) == ["0005", "0006"]


def test_a_server_that_does_not_answer_is_said_without_the_password(tiny_recipe, tmp_path):
    url = "postgresql://tuner:secret@127.0.0.1:1/none"
    with pytest.raises(
        RequestError, match=r"the storage postgresql://tuner:\*\*\*@127.0.0.1:1/none cannot be used"
    ) as error:
        tune(tiny_recipe(), SPACE, tmp_path / "out", trials=1, storage=url)
    assert "secret" not in str(error.value)
