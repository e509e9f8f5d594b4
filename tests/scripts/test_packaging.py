"""What a user gets by pip: the wheel's contents, the program from outside the checkout, imports with the core alone."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROOMS = ("framework", "modules", "datamodules", "callbacks")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    built = python("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(place), str(ROOT))
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = place.glob("*.whl")
    return file


def test_wheel_holds_the_rooms_and_every_config_and_nothing_else(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    tables = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "framework").rglob("*.yaml")]
    expected = {str(path.relative_to(ROOT)) for path in [*SOURCES, *tables]}
    assert expected <= inside
    about = f"fulgurite-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in inside} == {*ROOMS, "configs", about}
    assert f"{about}/licenses/LICENSE" in inside
    assert not [name for name in inside if name.endswith((".pyc", ".ckpt", ".csv"))]


def test_program_runs_from_a_wheel_installed_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    assert done.returncode == 0, done.stderr

    # -P keeps the current folder off the path; PYTHONPATH comes before the checkout's own editable installation.
    def program(*args: str) -> str:
        code = (
            "import framework.cli as cli, sys; print(cli.__file__, file=sys.stderr); sys.exit(cli.main(sys.argv[1:]))"
        )
        ran = python("-P", "-c", code, *args, cwd=elsewhere, PYTHONPATH=str(target))
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.startswith(str(target)), ran.stderr
        return ran.stdout

    assert PROJECT["version"] in program("--version")
    assert "digits" in program("methods")
    assert (target / "bin" / "fulgurite").exists()


def closure(requirements: list[str], seen: set[str]) -> set[str]:
    """Distributions that are installed by these requirements, followed through what they require themselves."""
    from packaging.requirements import Requirement

    for text in requirements:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for extra in {"", *requirement.extras}:
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            if f"{name}[{extra}]" in seen:
                continue
            seen.add(f"{name}[{extra}]")
            try:
                below = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            wanted = [Requirement(each) for each in below]
            chosen = [each for each in wanted if not each.marker or each.marker.evaluate({"extra": extra})]
            for each in chosen:
                each.marker = None
            closure([str(each) for each in chosen], seen)
    return {entry.split("[")[0] for entry in seen}


IMPORT_ALL = """
import importlib, json, sys

barred, modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])


class Without:
    # As if the barred names were not installed: found by nobody, for `import` and for libraries that look before.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in barred else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path = [Without(finder) for finder in sys.meta_path]
failed = {}
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed[module] = str(error)
print(json.dumps(failed))
"""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def provided() -> Mapping[str, list[str]]:
    """Distributions by the top-level names that they install; it reads the lists of files of all of them."""
    return metadata.packages_distributions()


def test_every_module_imports_with_the_core_dependencies_alone() -> None:
    core = closure(PROJECT["dependencies"], set())
    barred = {
        name
        for name, distributions in provided().items()
        if name not in ROOMS and not {re.sub(r"[-_.]+", "-", each).lower() for each in distributions} & core
    }
    assert {"pytest", "pyarrow", "mypy"} <= barred  # the bar is real: these are here, but only for developers
    assert not {"torch", "lightning", "sklearn", "pandas"} & barred
    ran = python("-c", IMPORT_ALL, json.dumps(sorted(barred)), json.dumps([module_name(path) for path in SOURCES]))
    assert ran.returncode == 0, ran.stderr
    failed = json.loads(ran.stdout.splitlines()[-1])
    # Which are imported for an environment, and by nobody else.
    assert failed.keys() == {"framework.rl.dm_control", "framework.rl.navigation.environment"}


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_what_a_file_imports_is_declared(path: Path) -> None:
    declared = [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", each)[0]).lower() for each in declared}
    foreign = imported(path) - set(sys.stdlib_module_names) - set(ROOMS)
    undeclared = {
        name
        for name in foreign
        if not {re.sub(r"[-_.]+", "-", each).lower() for each in provided().get(name, [name])} & names
    }
    assert not undeclared, f"{module_name(path)} imports {undeclared}, which pyproject.toml does not name"


def test_constraints_pin_everything_declared_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in pins, f"{name} stands twice"
            pins[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(each for extra in extras for each in extra)]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)], prereleases=True), text


def test_installed_versions_are_those_of_the_constraints() -> None:
    if Path(sysconfig.get_path("purelib")).is_relative_to(ROOT) and (ROOT / ".venv" / "fulgurite.stamp").exists():
        wrong = []
        for line in (ROOT / "constraints.txt").read_text().splitlines():
            if "==" in line:
                name, version = line.split("==")
                try:
                    installed = metadata.version(name)
                except metadata.PackageNotFoundError:
                    continue
                if installed.split("+")[0] != version:
                    wrong.append(f"{name}: {installed}, not {version}")
        assert wrong == []
    else:
        pytest.skip("this environment was not made by scripts/bootstrap")


def test_citation_names_the_licence_version_and_eleven_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["license"], citation["version"]) == (PROJECT["license"], PROJECT["version"])
    papers = citation["references"]
    assert len({paper["title"] for paper in papers}) == 11
    assert all(paper["authors"] and paper["type"] and paper["identifiers"] for paper in papers)
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_pre_commit_runs_the_checks_of_ci() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    known = set(re.findall(r"^    (\w+)\) check", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert [hook["entry"] for hook in hooks] == [f".ci/run {hook['id']}" for hook in hooks]
    assert known - {hook["id"] for hook in hooks} == {"tests"}
