import sys

import pytest

from petriscope import cli


@pytest.fixture
def petriscope(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in a folder of its own. Gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_settle_process", lambda: None)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["petriscope", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err

    return call
