"""What is installed: every module and data file, by each way of building, at the versions that were tested."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "app": "transpector",
    "components": "transpector/components",
    "state": "transpector/state",
}
NOT_SHIPPED = {"__pycache__", ".DS_Store", ".ipynb_checkpoints"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def files_in_the_tree() -> dict[str, Path]:
    """Everything under our three folders, by the path that it has when installed."""
    return {
        f"{FOLDERS[folder]}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts)
    }


def packages_in_the_tree() -> dict[str, str]:
    """Folders that have an __init__.py, by the name of the package."""
    return {
        Path(installed).parent.as_posix().replace("/", "."): path.parent.relative_to(ROOT).as_posix()
        for installed, path in files_in_the_tree().items()
        if path.name == "__init__.py"
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of what a build reads, as a fresh clone has it: nothing of an earlier build."""
    copy = tmp_path_factory.mktemp("clone")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    return copy


def build(what: str, source: Path, into: Path) -> Path:
    """Build a wheel or an sdist of ``source`` with the setuptools at hand, as pip would."""
    into.mkdir(exist_ok=True)
    program = f"from setuptools import build_meta; build_meta.build_{what}({str(into)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build("wheel", copy, tmp_path_factory.mktemp("wheel"))) as wheel:
        yield wheel


def contents(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith("/")}


def test_pyproject_lists_every_package_once_in_both_lists():
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(packages_in_the_tree())
    assert setuptools["package-dir"] == packages_in_the_tree()


def test_the_wheel_holds_what_is_in_the_tree_and_nothing_else(wheel):
    assert sorted(contents(wheel)) == sorted(files_in_the_tree())


def test_the_wheel_holds_the_same_bytes(wheel):
    files = files_in_the_tree()
    assert [name for name in contents(wheel) if wheel.read(name) != files[name].read_bytes()] == []


def test_the_wheel_holds_the_model_the_scripts_and_the_style(wheel):
    names = contents(wheel)
    assert "transpector/state/builtin/model.safetensors" in names
    assert "transpector/state/builtin/tokenizer.json" in names
    assert "transpector/components/contact_sheet.js" in names
    assert not [name for name in names if "test" in name]


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    about = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "transpector = transpector.cli:main" in wheel.read(about["entry_points.txt"]).decode()
    assert "LICENSE" in about


def test_a_wheel_made_from_the_sdist_is_the_same(copy, wheel, tmp_path):
    with tarfile.open(build("sdist", copy, tmp_path / "sdist")) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("transpector-*")
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel")) as again:
        assert contents(again) == contents(wheel)


def test_a_wheel_lacks_what_no_list_names_so_the_comparison_matters(copy, wheel, tmp_path):
    clone = shutil.copytree(copy, tmp_path / "clone")
    (clone / "components" / "forgotten.svg").touch()
    (clone / "state" / "forgotten").mkdir()
    (clone / "state" / "forgotten" / "__init__.py").touch()
    with zipfile.ZipFile(build("wheel", clone, tmp_path / "wheel")) as again:
        assert contents(again) == contents(wheel)


def test_the_version_is_said_once():
    import transpector

    assert transpector.__version__ == PYPROJECT["project"]["version"]


# The versions that were tested


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def closure(requirements: list[str], extras: frozenset[str] = frozenset()) -> set[str]:
    """Distributions that these requirements need here, and those that they need."""
    found: set[str] = set()
    waiting = [(Requirement(text), extras) for text in requirements]
    seen = set()
    while waiting:
        requirement, asked = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in {"", *asked}):
            continue
        name = canonicalize_name(requirement.name)
        if (name, key := frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, key))
        found.add(name)
        for needed in importlib.metadata.requires(name) or ():
            waiting.append((Requirement(needed), key))
    return found


def needed_here() -> set[str]:
    project = PYPROJECT["project"]
    return closure([*project["dependencies"], *project["optional-dependencies"]["test"]])


def test_every_constraint_pins_one_public_version():
    for pin in constraints().values():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, str(pin)
        assert "+" not in specifier.version, f"{pin}: a local version exists on one machine only"


def test_constraints_name_all_that_the_install_takes_and_no_more():
    # A torch from elsewhere than this build may bring libraries of its own for a graphics card.
    drivers = {name for name in needed_here() if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert needed_here() - drivers == set(constraints())


def test_constraints_are_within_what_pyproject_allows():
    project = PYPROJECT["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        allowed = Requirement(text)
        (pinned,) = constraints()[canonicalize_name(allowed.name)].specifier
        assert allowed.specifier.contains(pinned.version), f"{text} excludes the tested {pinned.version}"


def test_torch_is_pinned():
    assert str(constraints()["torch"]) == "torch==2.13.0"


# The README's two lines are what CI runs


def readme_lines() -> list[str]:
    """The README's lines that install: the first opens the page, the second runs the tests."""
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    return [line for line in lines if line.startswith("pip install") and "&&" in line]


def commands(script: str) -> list[str]:
    return [line.strip() for line in script.splitlines() if line.strip() and not line.strip().startswith("#")]


def missing(lines: list[str], script: str) -> list[str]:
    """Steps of the lines that the script does not run, or not in this order; it may add options and redirections."""
    wanting, at, run = [], 0, commands(script)
    for step in (step.strip() for line in lines for step in line.split("&&")):
        places = [i for i in range(at, len(run)) if re.match(re.escape(step) + r"($|\s)", run[i])]
        if places:
            at = places[0] + 1
        else:
            wanting.append(step)
    return wanting


def test_ci_runs_the_lines_of_the_readme():
    lines = readme_lines()
    assert [line.split("&&")[-1].strip() for line in lines] == ["transpector", "pytest"]
    assert all("-c constraints.txt" in line for line in lines)
    assert not missing(lines, (ROOT / ".ci" / "run").read_text())


def test_a_line_that_ci_does_not_run_is_noticed():
    lines = ["pip install . && transpector", 'pip install -e ".[test]" && pytest']
    script = 'pip install .\ntranspector --port 1 &\n\npip install -e ".[test]"\npytest\n'
    assert not missing(lines, script)
    assert missing(lines, script.replace("transpector --port", "transpector2 --port")) == ["transpector"]
    assert missing(lines, script.replace("pytest", "# pytest")) == ["pytest"]
    assert missing(lines, script.replace("install .", "install --pre .")) == ["pip install ."]
