"""Who may import whom, what modules may be called, and what no module may do: each rule seen failing."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "app": "transpector",
    "components": "transpector.components",
    "state": "transpector.state",
    "tests": "tests",
}
NOT_OURS = {"__pycache__", "build", "dist"}

VIEW_LIBRARIES = {"panel", "panel_material_ui", "panel_reactflow", "bokeh", "holoviews", "hvplot"}
MODEL_LIBRARIES = {"torch", "transformer_lens", "transformers"}
# What any pane may use; a part is itself held to this list, so it knows no pane.
SHARED_COMPONENTS = {f"transpector.components.{name}" for name in ("base", "theme", "parts")}
VAGUE = {"utils", "util", "helpers", "helper", "manager", "data", "info"}

# Panes that render what they are given as HTML; a module may be listed with the reason why its text is safe.
HTML_PANES = {"Str", "HTML", "Markdown", "Alert", "StaticText"}
MAY_RENDER_HTML: dict[str, str] = {}


@dataclass(frozen=True)
class Import:
    """One imported name, as an absolute dotted name; relative ones keep their dots."""

    line: int
    name: str

    @property
    def library(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Source:
    """One file of the repository, by the name under which Python imports it."""

    name: str  # "transpector.state.run"; of a script, its path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_python(self) -> bool:
        return not self.name.endswith(".js")

    @property
    def folder(self) -> str:
        """The one of FOLDERS that it is part of."""
        for folder in ("components", "state"):
            if self.name == FOLDERS[folder] or self.name.startswith(f"{FOLDERS[folder]}."):
                return folder
        return "tests" if self.name.split(".")[0] == "tests" else "app"

    @cached_property
    def imports(self) -> list[Import]:
        """Everything it imports anywhere: in functions, under TYPE_CHECKING, by import_module("...") too."""
        return list(imports(self.tree))


def imports(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            dot = "" if origin.endswith(".") else "."
            # What is imported may be a module or a name in one: `from transpector import state` names a module.
            yield from (Import(node.lineno, f"{origin}{dot}{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.lineno, node.args[0].value)


# The rules: each yields what is wrong with one file.


def state_knows_no_page(source: Source) -> Iterator[str]:
    if source.folder == "state":
        for imported in source.imports:
            if imported.library in VIEW_LIBRARIES or imported.name.startswith("transpector.components"):
                yield f"line {imported.line}: state imports {imported.name}"


def components_know_no_model_library(source: Source) -> Iterator[str]:
    if source.folder == "components":
        for imported in source.imports:
            if imported.library in MODEL_LIBRARIES:
                yield f"line {imported.line}: a component imports {imported.name}"


def components_know_no_sibling_but_the_shared(source: Source) -> Iterator[str]:
    if source.folder == "components":
        for imported in source.imports:
            if not imported.name.startswith("transpector.components."):
                continue
            module = ".".join(imported.name.split(".")[:3])
            # The parts of a pane that is a package of its own know one another.
            if module not in SHARED_COMPONENTS and not source.name.startswith(f"{module}."):
                yield f"line {imported.line}: a component imports its sibling {imported.name}"


def nothing_but_app_imports_app(source: Source) -> Iterator[str]:
    if source.folder in ("state", "components"):
        for imported in source.imports:
            part = imported.name.split(".")[1:2]
            if imported.library == "transpector" and part not in (["state"], ["components"]):
                yield f"line {imported.line}: {source.folder} imports {imported.name} of app"


def imports_are_absolute(source: Source) -> Iterator[str]:
    for imported in source.imports if source.is_python else ():
        if imported.name.startswith("."):
            yield f"line {imported.line}: relative import of {imported.name}"


def app_shadows_no_library(source: Source) -> Iterator[str]:
    # `panel serve app` puts app/ first on sys.path: app/token.py would be everybody's `token`.
    if source.folder == "app" and source.is_python:
        first = source.name.removeprefix("transpector").lstrip(".").split(".")[0]
        if first in {"state", "components"} | sys.stdlib_module_names | third_party():
            yield f"app/{first} takes the name of a library or of a folder of ours"


def names_say_something(source: Source) -> Iterator[str]:
    for part in Path(source.name).stem.split(".") if not source.is_python else source.name.split("."):
        if part in VAGUE:
            yield f"{part!r} says nothing; name the noun"


def nothing_prints(source: Source) -> Iterator[str]:
    if source.folder != "tests" and source.is_python:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"line {node.lineno}: print"


def no_except_is_bare(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree) if source.is_python else ():
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


def no_script_writes_html(source: Source) -> Iterator[str]:
    if source.folder != "tests":
        for number, line in enumerate(source.text.splitlines(), 1):
            if found := re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML)\b|\bdocument\.write\b", line):
                yield f"line {number}: {found[0]}; token text is data, so use textContent"


def no_pane_renders_html(source: Source) -> Iterator[str]:
    if source.folder not in ("app", "components") or not source.is_python or source.name in MAY_RENDER_HTML:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in HTML_PANES:
            owner = ast.unparse(node.value).split(".")[-1]
            if owner in ("pane", "widgets"):
                yield f"line {node.lineno}: {owner}.{node.attr} renders its text as HTML"
    for imported in source.imports:
        module, _, name = imported.name.rpartition(".")
        if module in ("panel.pane", "panel.widgets") and name in HTML_PANES:
            yield f"line {imported.line}: {imported.name} renders its text as HTML"


def third_party() -> set[str]:
    """Top-level names of the installed distributions, ours aside."""
    return {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if owners != ["transpector"] and name.isidentifier()
    }


# For each rule, files that break it, as name -> text; tests/ may do what they like where a rule says so.
GUILTY: dict[Callable[[Source], Iterable[str]], dict[str, str]] = {
    state_knows_no_page: {
        "transpector.state.a": "import panel as pn",
        "transpector.state.b": "def f():\n    from bokeh.models import ColumnDataSource",
        "transpector.state.c": "if TYPE_CHECKING:\n    import holoviews",
        "transpector.state.builtin.d": "from transpector.components.theme import UNIT",
        "transpector.state.e": "from transpector import components",
        "transpector.state.f": "import panel.io.state",
        "transpector.state": "panel = importlib.import_module('panel')",
    },
    components_know_no_model_library: {
        "transpector.components.a": "import torch",
        "transpector.components.b": "if TYPE_CHECKING:\n    from torch import Tensor",
        "transpector.components.c": "def f():\n    import transformer_lens.utilities",
        "transpector.components.d": "from transformers import AutoTokenizer",
    },
    components_know_no_sibling_but_the_shared: {
        "transpector.components.a": "from transpector.components.loss import LossCurve",
        "transpector.components.b": "from transpector.components import theme, loss",
        "transpector.components.c": "import transpector.components.token_strip",
        "transpector.components.theme": "def f():\n    from transpector.components.loss import LossCurve",
        "transpector.components.d": "import_module('transpector.components.loss')",
        "transpector.components.parts.e": "from transpector.components.loss import LossCurve",
    },
    nothing_but_app_imports_app: {
        "transpector.components.a": "from transpector.dashboard import Dashboard",
        "transpector.components.b": "import transpector",
        "transpector.state.a": "from transpector import load_model",
        "transpector.state.b": "def f():\n    import transpector as tp",
        "transpector.state.builtin": "from transpector.cli import main",
    },
    imports_are_absolute: {
        "transpector.dashboard": "from . import notebook",
        "transpector.state.a": "from .run import Run",
        "transpector.components.a": "def f():\n    from ..state import run",
        "tests.state.test_a": "from .conftest import require",
    },
    app_shadows_no_library: {
        "transpector.token": "",
        "transpector.logging": "",
        "transpector.torch": "",
        "transpector.bokeh.theme": "",
    },
    names_say_something: {
        "transpector.state.utils": "",
        "transpector.components.helpers": "",
        "transpector.manager": "",
        "transpector.state.data.texts": "",
        "tests.info": "",
        "components/utils.js": "",
    },
    nothing_prints: {
        "transpector.cli": "def main():\n    print('hello')",
        "transpector.state.a": "print(1)",
    },
    no_except_is_bare: {
        "transpector.state.a": "try:\n    f()\nexcept:\n    pass",
        "tests.state.test_a": "def f():\n    try:\n        f()\n    except:\n        raise",
    },
    no_script_writes_html: {
        "components/a.js": "el.innerHTML = token",
        "app/assets/b.js": "el.insertAdjacentHTML('beforeend', token)",
        "transpector.components.a": '_esm = """\nel.outerHTML = token"""',
        "components/c.js": "document.write(token)",
    },
    no_pane_renders_html: {
        "transpector.components.a": "import panel as pn\npn.pane.Str(text)",
        "transpector.components.b": "from panel.pane import HTML",
        "transpector.dashboard": "def f():\n    return panel.pane.Markdown(text)",
        "transpector.components.c": "pn.widgets.StaticText(value=text)",
        "transpector.components.d": "import panel\nmake = panel.pane.Alert",
    },
}

# Files that come close and break nothing.
INNOCENT = {
    "transpector.state.a": "import torch\nfrom transpector.state.run import Run\nfrom transpector import state",
    "transpector.state.panel": "'''import panel'''\nnames = ['bokeh']",
    "transpector.components.a": (
        "from transpector.components import theme\nfrom transpector.components.base import Pane\n"
        "from transpector.components.parts.notice import Notice\nfrom transpector.components.theme import UNIT\n"
        "from transpector.state.session import Session"
    ),
    "transpector.dashboard": "import torch\nfrom transpector.components.loss import LossCurve\nimport transpector",
    "transpector.__main__": "from transpector.cli import main",
    "transpector": "'''print('hello')'''",
    "transpector.cli": "try:\n    f()\nexcept OSError:\n    sys.stdout.write('print')",
    "components/a.js": "el.textContent = token",
    "tests.components.test_a": (
        "import panel, torch, transpector.components.loss\nprint(1)\npn.pane.HTML('')\n"
        "'innerHTML'\nfrom transpector.dashboard import Dashboard"
    ),
    "transpector.components.database": "pane = Markdown\nself.Str",
}


def read(path: Path) -> Source:
    relative = path.relative_to(ROOT)
    if path.suffix == ".js":
        return Source(relative.as_posix(), path.read_text())
    folder, *parts = relative.with_suffix("").parts
    parts = [FOLDERS[folder], *parts[:-1], *(parts[-1:] if parts[-1:] != ["__init__"] else [])]
    return Source(".".join(parts), path.read_text())


def sources() -> list[Source]:
    found = [
        path
        for folder in FOLDERS
        for suffix in ("py", "js")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        if not NOT_OURS & set(path.parts)
    ]
    return [read(path) for path in sorted(found)]


def name_of(given: Callable | str) -> str:
    return given if isinstance(given, str) else given.__name__


@pytest.mark.parametrize("rule", GUILTY, ids=name_of)
def test_the_repository_keeps_the_rule(rule):
    broken = [f"{source.name}: {wrong}" for source in sources() for wrong in rule(source)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "name"), [(rule, name) for rule, files in GUILTY.items() for name in files], ids=name_of
)
def test_the_rule_catches_who_breaks_it(rule, name):
    assert list(rule(Source(name, GUILTY[rule][name])))


@pytest.mark.parametrize("rule", GUILTY, ids=name_of)
@pytest.mark.parametrize("name", INNOCENT)
def test_the_rule_lets_the_innocent_pass(rule, name):
    assert not list(rule(Source(name, INNOCENT[name])))


def test_the_rules_see_every_module():
    names = {source.name for source in sources()}
    assert {"transpector", "transpector.components.theme", "transpector.state.session"} <= names
    assert {"transpector.state.builtin", "components/contact_sheet.js", "tests.test_architecture"} <= names


# What an import costs.


def loaded_by(statement: str) -> set[str]:
    """Libraries in sys.modules after the statement, in a fresh interpreter."""
    return set(
        fresh(f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})").split()
    )


def fresh(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_transpector_costs_less_than_a_tenth_of_a_second():
    program = (
        "import time; began = time.perf_counter(); import transpector; print(time.perf_counter() - began)"
    )
    assert min(float(fresh(program)) for _ in range(5)) < 0.1


def test_importing_transpector_loads_no_library():
    loaded = loaded_by("import transpector")
    assert "transpector" in loaded
    assert not loaded & ({"numpy", "pandas", "param"} | MODEL_LIBRARIES | VIEW_LIBRARIES)


def test_importing_the_session_loads_no_model_and_no_view_library():
    loaded = loaded_by("import transpector.state.session")
    assert "param" in loaded
    assert not loaded & (MODEL_LIBRARIES | VIEW_LIBRARIES)


def test_importing_the_components_loads_no_model_library():
    names = [source.name for source in sources() if source.folder == "components" and source.is_python]
    assert len(names) > 1
    loaded = loaded_by(f"import {', '.join(names)}")
    assert "panel" in loaded
    assert not loaded & MODEL_LIBRARIES


def test_what_loads_a_library_is_seen():
    assert "torch" in loaded_by("import transpector; transpector.Run")
