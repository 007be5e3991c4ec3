"""Print pip constraints that hold every dependency of pyproject.toml at the lowest release it allows."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for line in [*project["dependencies"], *project["optional-dependencies"]["masks"]]:
    requirement = Requirement(line)
    (lowest,) = [each.version for each in requirement.specifier if each.operator == ">="]
    print(f"{requirement.name}=={lowest}")
