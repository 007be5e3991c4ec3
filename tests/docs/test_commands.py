"""Commands, files and modules that the documents name exist."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from petriscope.cli.commands import app
from petriscope.core.recipe import recipe_names
from petriscope.experiments.suite import suite_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "petriscope"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
EXAMPLES = re.compile(r"my-|RECIPE|SUITE|\.yaml$")  # recipes and suites that a reader has to make


def commands(page):
    """Every whole command on a page: in blocks of code, and between backticks if it has arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S))
    lines = [*blocks.splitlines(), *re.findall(r"^    (.*)", text, re.M)]
    found = [
        re.sub(r"^.*?\bpetriscope (?=[a-z])", "", line) for line in lines if re.match(r"\S* ?\S*petriscope [a-z]", line)
    ]
    return [*found, *re.findall(r"`petriscope ([a-z]+ [^`]+)`", text)]


def words_of(command):
    """The arguments of a command, without comments, marks of what may be left out, and ellipses."""
    words = shlex.split(re.sub(r"\s+#.*", "", command))
    return [word.strip("[]").removesuffix("...").rstrip(",.;") or "X" for word in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_these_options(page):
    known = typer.main.get_command(app).commands
    for command in commands(page):
        name, *arguments = words_of(command)
        assert name in known, f"{page.name}: petriscope {command}"
        options = {
            option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in options]
        assert not unknown, f"{page.name}: petriscope {command}"
        if arguments and not arguments[0].startswith("-") and not EXAMPLES.search(arguments[0]):
            if name == "train":
                assert arguments[0] in recipe_names(), f"{page.name}: petriscope {command}"
            if name == "bench":
                assert arguments[0] in suite_names(), f"{page.name}: petriscope {command}"


def test_the_readme_shows_commands():
    assert len(commands(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {link}"


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert (DOCS / "images" / "report.png").stat().st_size < 300_000


def test_files_named_in_the_architecture_exist():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([a-z_]\w*(?:/\w+)*(?:/|\.py))`", text)
    assert len(paths) > 20
    assert not [path for path in paths if not (SOURCE / path).exists() and not (ROOT / path).exists()]


def test_the_architecture_lists_every_room_and_modules_that_exist():
    text = re.sub(r"\([^)]*\)", "", (DOCS / "architecture.md").read_text(encoding="utf-8"))
    rooms = dict(re.findall(r"^    (\w+)/ +(.*)", text, re.M))
    packages = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert packages - {"cli"} <= set(rooms)
    for room in packages & set(rooms):
        for name in re.findall(r"(?:^|,|:) *(\w+)/? *(?=,|$)", rooms[room]):
            assert (SOURCE / room / name).is_dir() or (SOURCE / room / f"{name}.py").is_file(), f"{room}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_named_in_the_documents_exist(page):
    for name in re.findall(r"`(petriscope(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        module, _, attribute = name.rpartition(".")
        if module == "petriscope":
            assert hasattr(sys.modules["petriscope"], attribute) or find_spec(name), f"{page.name}: {name}"
        else:
            assert find_spec(module), f"{page.name}: {name}"


def test_benchmarks_start():
    names = sorted(
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("common", "orchard_ml")
    )
    program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_benchmarks_named_in_the_documents_exist():
    for page in PAGES:
        for name in re.findall(r"benchmarks/(\w+)\.py", page.read_text(encoding="utf-8")):
            assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"{page.name}: {name}"
