# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What README and docs say: every block is read, what is cheap runs, links and names hold, the site builds."""

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types

import pytest

from documented import PAGES, ROOT, blocks, check_command, commands
from documented_commands import AFTER_QUICKSTART
from hf_clipbd.cli.texts import EPILOG, TEXTS


EXECUTED = [page for page in PAGES[1:] if blocks(page, "python")]  # test_readme.py runs the README's
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RECIPE_PAGES = sorted((ROOT / "recipes").glob("*/README.md"))
PROGRAMS = ("accelerate ", "python ", "hf-clipbd ", "make ", "pip ")


@pytest.fixture(autouse=True)
def families_as_they_were():
    """Take back what the page about extending puts into the dictionaries."""
    from hf_clipbd.attacks import ATTACKS
    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.detection import DETECTORS

    families = (ATTACKS, DEFENSES, DETECTORS)
    before = [dict(family) for family in families]
    yield
    for family, kept in zip(families, before, strict=True):
        family.clear()
        family.update(kept)


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_has_a_language_and_reads_as_it(page):
    for block in blocks(page):
        assert block.language in ("python", "bash", "text", "yaml", "bibtex"), block.where
        if block.language == "python":
            compile(block.text, block.where, "exec")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_could_be_meant(page):
    wrong = {
        f"{block.where}: {line}": said
        for block in blocks(page, "bash")
        for line in commands(block.text)
        if (said := check_command(line))
    }
    assert wrong == {}


def test_every_example_of_the_help_could_be_meant():
    wrong = {line: said for text in TEXTS.values() for line in text.examples if (said := check_command(line))}
    assert wrong == {} and all(text.examples for text in TEXTS.values())


def test_the_help_completes_as_the_page_does():
    (install,), (setting,) = re.findall(r"pip install .*?'\S+'", EPILOG), re.findall(r"eval .*", EPILOG)
    shown = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert check_command(install) == check_command(setting) == "" and install in shown and setting in shown


@pytest.mark.parametrize(
    "line",
    [
        "hf-clipbd detect pairs --modle victim --out found",
        "hf-clipbd train pairs --out victim --lerning_rate 3",
        "hf-clipbd defend victim --defense cleanclp --data scenes --out d",
        "hf-clipbd poison scenes --count 3 --out p --attack.pach 3",
        "hf-clipbd run recipes/scenes/defend.yaml --victim.lr 3",
        "accelerate launch recipes/defned.py",
        "accelerate launch --config_file recipes/accelerate/none.yaml recipes/defend.py",
        "accelerate launch recipes/defend.py --sed 1",
        "make demmo",
        "pip install '.[nothing]'",
        "pip install 'hf-clipbd[completion]'",
        "rm -rf runs",
    ],
)
def test_a_command_that_cannot_be_meant_is_seen(line, capsys):
    assert check_command(line) != ""


@pytest.mark.parametrize("page", EXECUTED, ids=[str(page.relative_to(ROOT)) for page in EXECUTED])
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")  # a module that can be found, so that what it defines can be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page, "python"):
        if not block.comment.startswith("not run: "):
            exec(compile(block.text, block.where, "exec"), vars(module))


def test_the_quickstart_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    from hf_clipbd.cli import main

    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    shown = [block for block in blocks(ROOT / "docs" / "quickstart.md", "bash") if block.comment == "runs"]
    lines = [*(line for block in shown for line in commands(block.text)), *AFTER_QUICKSTART]
    assert len(lines) >= 10
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    out = capsys.readouterr().out
    assert "next     hf-clipbd train poisoned" in out and "DER" in out and "to run" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "victim2").exists()


@pytest.mark.parametrize("page", RECIPE_PAGES, ids=lambda page: page.parent.name)
def test_every_command_of_a_recipe_could_be_meant(page):
    shown = re.findall(r"(?:^ {4}\S.*\n?)(?:^ {4}.*\n?)*", page.read_text("utf-8"), re.MULTILINE)
    shown += [block.text for block in blocks(page, "bash")]
    lines = [line for block in shown for line in commands(block) if line.startswith(PROGRAMS)]
    assert {line: said for line in lines if (said := check_command(line))} == {}


# -- names and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = set(re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text))
    assert [link for link in links if not (page.parent / link).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"`((?:recipes|benchmarks|notebooks|tests|src)/[\w./]+\.\w+)`", page.read_text("utf-8")))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_paper_index_names_functions_and_tests_that_exist():
    text = (ROOT / "docs" / "papers.md").read_text("utf-8")
    functions = re.findall(r"\[`([\w.]+)`\]\[\]", text)
    tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(functions) >= 40 and len(tests) >= 35
    for name in functions:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    for path, name in tests:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (path, name)


def test_every_equation_stands_in_the_paper_index():
    from hf_clipbd.attacks import ATTACKS
    from hf_clipbd.detection import DETECTORS

    text = (ROOT / "docs" / "papers.md").read_text("utf-8")
    tree = ast.parse((ROOT / "src" / "hf_clipbd" / "losses.py").read_text("utf-8"))
    parts = {"several_processes", "gather_with_grad", "all_reduce_with_grad"}
    parts |= {"one_way_loss", "image_text_loss", "patch_text_loss"}
    losses = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert [name for name in losses - parts if f"losses.{name}`" not in text] == []
    assert [name for name, one in DETECTORS.items() if f"detection.{one.__name__}`" not in text] == []
    combined = {"image_text_trigger"}
    assert [name for name, one in ATTACKS.items() if name not in combined and f".{one.__name__}`" not in text] == []


# -- the site ---------------------------------------------------------------------------------------------------------


def render():
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "_hooks" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmarks_are_rendered_from_records_alone(tmp_path):
    folder = tmp_path / "benchmarks"
    (folder / "records" / "fast").mkdir(parents=True)
    (folder / "fast.py").write_text('"""How fast.\n\nMore."""\n')
    (folder / "slow.py").write_text('"""How slow."""\n')
    record = {
        "stage": "benchmark/fast",
        "config": {"n": 3},
        "command": "fast.py --n 3",
        "machine": {"cores": 2},
        "versions": {"torch": "2.13.0"},
        "metrics": {"share_of_forward": 0.875, "seconds": {"all": 7.25}},
    }
    (folder / "records" / "fast" / "record.json").write_text(json.dumps(record))
    module = render()
    module.ROOT = tmp_path
    shown = module.benchmarks(folder)
    fast, slow = shown.split("## `benchmarks/slow.py`")
    for part in ("How fast.", "0.875", "seconds.all | 7.25", "cores 2", "torch 2.13.0", "fast.py --n 3"):
        assert part in fast, part
    assert "Not measured" in slow and "Not measured" not in fast


def test_every_committed_benchmark_record_is_shown():
    shown = render().benchmarks(ROOT / "benchmarks")
    records = sorted((ROOT / "benchmarks" / "records").rglob("*.json"))
    assert records and all(path.relative_to(ROOT).as_posix() in shown for path in records)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built site; every warning is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()
    assert "AUROC / average precision / recall at 1 % removal" in (site / "benchmarks.html").read_text("utf-8")
    assert "hf-clipbd detect DATASET" in (site / "cli.html").read_text("utf-8")


def test_the_site_shows_results_with_their_figures(site):
    shown = (site / "results.html").read_text("utf-8")
    figures = re.findall(r'src="(figures/[^"]+)"', shown)
    assert len(figures) == (ROOT / "RESULTS.md").read_text("utf-8").count("](recipes/reproduce/figures/")
    assert all((site / path).is_file() for path in figures)
    assert "](" not in re.sub(r"<[^>]+>", "", shown), "a link was left unrendered"


def test_the_site_asks_nothing_of_other_servers(site):
    loaded = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"')
    for page in site.rglob("*.html"):
        outside = [url for url in loaded.findall(page.read_text("utf-8")) if "/canonical" not in url]
        assert outside == [], page


ROOMS = ("attacks", "captions", "data", "defenses", "detection", "evaluation", "features", "hub", "losses", "models")
ROOMS += ("cli", "report", "run_folder", "scenes", "schema", "templates", "trainer")


def test_every_public_name_has_its_place_in_the_site(site):
    from mkdocstrings import Inventory

    with (site / "objects.inv").open("rb") as file:
        documented = set(Inventory.parse_sphinx(file))
    missing = []
    for room in ROOMS:
        module = importlib.import_module(f"hf_clipbd.{room}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        for name in names:
            own = getattr(getattr(module, name), "__module__", "")  # the file that defines it, where it is one
            places = {f"hf_clipbd.{room}.{name}", f"hf_clipbd.{room}.{name}.{name}", f"{own}.{name}"}
            missing += [f"hf_clipbd.{room}.{name}"] if documented.isdisjoint(places) else []
    assert not missing, missing
