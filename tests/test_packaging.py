# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What is installed: dependencies, pins, package data, the interpreter that `make` picks."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import hf_clipbd
from test_structure import PACKAGE, imported_names, sources


ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "open_clip": "open_clip_torch",
    "faiss": "faiss-cpu",
}
COMES_WITH = {"pyarrow": "datasets", "pandas": "datasets"}


@pytest.fixture
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def release(version):
    return tuple(int(part) for part in version.split("."))


def test_every_third_party_import_is_declared(setup):
    required = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    lines = required.strip().split("\n")
    declared = {line.partition(">=")[0] for line in lines}
    imported = {
        name.split(".")[0]: path
        for path, source in sources().items()
        for _, name in imported_names(ast.parse(source), path)
    }
    missing = {
        name: path
        for name, path in imported.items()
        if name not in sys.stdlib_module_names and name != "hf_clipbd"
        if COMES_WITH.get(name, DISTRIBUTIONS.get(name, name)) not in declared
    }
    assert imported and missing == {}


def test_every_requirement_is_pinned_at_or_above_its_lower_bound(setup):
    required = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    assert lines[0].startswith("torch==")
    for requirement in required.strip().split("\n"):
        name, bound = requirement.lower().replace("_", "-").split(">=")
        assert release(pins[name]) >= release(bound), requirement


def test_every_pin_takes_the_first_python_that_the_package_takes(setup):
    least = setup["options"]["python_requires"].removeprefix(">=") + ".0"
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [one for one in distributions() if f"{one.name}=={one.version}" in pins]
    asked = {one.name: one.metadata["Requires-Python"] for one in pinned}
    assert asked
    assert {name: needs for name, needs in asked.items() if needs and least not in SpecifierSet(needs)} == {}


def test_constraints_name_no_machine():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"@|://|\+|^-|/", text, re.MULTILINE)


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml asks; pip gets it for itself
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    package = source / "src" / "hf_clipbd"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"hf_clipbd-{hf_clipbd.__version__}-py3-none-any.whl"
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {f"hf_clipbd/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    assert files - packed == set()


def test_citation_names_the_version_and_the_four_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hf_clipbd.__version__
    papers = {paper["identifiers"][0]["value"].removeprefix("arXiv:") for paper in citation["references"]}
    assert papers == {"2409.17601", "2311.12075", "2502.01385", "2303.03323"}


def fake_interpreter(folder, name, version, *modules):
    """Write a script that answers the questions of `.ci/find-python` as a Python of this version would."""
    minor = int(version.split(".")[1])
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(
        "#!/bin/sh\n"
        'case "$2" in\n'
        f"  *print*) echo {version};;\n"
        f"  *exit*) exit {0 if minor >= 11 else 1};;\n"
        f"  *ensurepip*) exit {0 if 'ensurepip' in modules else 1};;\n"
        "esac\n"
    )
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("version", "modules", "says"),
    [
        ("3.12", ["ensurepip"], None),
        ("3.10", ["ensurepip"], "Expected Python 3.11 or newer, but found only"),
        ("3.12", [], "apt-get install python3-venv"),
    ],
)
def test_make_takes_an_interpreter_that_will_do_or_says_why_not(tmp_path, version, modules, says):
    script = fake_interpreter(tmp_path / "bin", "python3", version, *modules)
    found = subprocess.run(["sh", ROOT / ".ci" / "find-python", script], capture_output=True, text=True)
    if says is None:
        assert (found.returncode, found.stdout.strip()) == (0, str(script))
    else:
        assert found.returncode == 1 and found.stdout == "" and says in found.stderr


def test_make_passes_over_an_old_interpreter(tmp_path):
    folder = tmp_path / "bin"
    fake_interpreter(folder, "python3", "3.9", "ensurepip")
    fake_interpreter(folder, "python3.13", "3.13", "ensurepip")
    path = f"{folder}{os.pathsep}/nowhere"
    found = subprocess.run(
        [shutil.which("sh"), ROOT / ".ci" / "find-python"], capture_output=True, text=True, env={"PATH": path}
    )
    assert found.stdout.strip() == "python3.13"
