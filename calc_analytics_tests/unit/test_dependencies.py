"""Every third-party package that the code imports is declared in pyproject.toml and pinned in constraints.txt."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest

from calc_analytics.config import project_root
from calc_analytics_tests.unit.test_house import MODULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((project_root() / "pyproject.toml").read_text())["project"]
# `up` runs the webserver as a process; zoneinfo reads the files of tzdata.
NOT_IMPORTED = {"tzdata", "dagster-webserver"}


def normalized(name: str) -> str:
    """'prometheus-client' for 'prometheus_client>=0.22'."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", name)[0]).lower()


DECLARED = {normalized(each) for each in PROJECT["dependencies"]}
# Imported where they are needed; without them the error names the extra.
OPTIONAL = {normalized(each) for name in ("archive", "spark") for each in PROJECT["optional-dependencies"][name]}
PINS = (project_root() / "constraints.txt").read_text().splitlines()


def imported() -> set[str]:
    """The top-level names that calc_analytics imports, without the standard library and itself."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"calc_analytics"}


# A package of an extra that is not installed is looked up under the name that is imported.
IMPORTED = {name: {normalized(each) for each in packages_distributions().get(name, [name])} for name in imported()}


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_every_imported_package_is_declared(name: str):
    assert IMPORTED[name] & (DECLARED | OPTIONAL), (
        f"{name} is of {IMPORTED[name]}, which pyproject.toml does not declare"
    )


@pytest.mark.parametrize("package", sorted(DECLARED - NOT_IMPORTED))
def test_every_declared_package_is_imported(package: str):
    assert any(package in distributions for distributions in IMPORTED.values())


@pytest.mark.parametrize("package", sorted(DECLARED | OPTIONAL))
def test_every_declared_package_is_pinned(package: str):
    assert any(normalized(line) == package and "==" in line for line in PINS)


def test_constraints_are_names_and_versions():
    for line in PINS:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; .+)?", line), line
