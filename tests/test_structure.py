# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The house rules that a machine can check: who imports whom, how long things are, what is documented."""

import ast
import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hf_clipbd"

# Each room imports from rooms of a lower rank only. A new room gets its rank here.
RANKS = {
    room: rank
    for rank, rooms in enumerate(
        [
            ("schema", "losses", "articles", "tables"),
            ("data", "captions", "models"),
            ("features", "training"),
            ("trainer", "attacks", "detection", "scenes"),
            ("defenses", "evaluation", "run_folder", "templates"),
            ("hub", "report"),
            ("recipe",),
            ("cli",),
        ]
    )
    for room in rooms
}
# Third-party name -> where alone it may be imported; () is nowhere.
ONE_PLACE = {
    "transformers.Trainer": ("trainer.py",),
    "transformers.trainer": ("trainer.py",),
    "evaluate": ("detection/metric.py",),
    "huggingface_hub": ("hub/", "models/"),
    "torchvision": (),
    "open_clip": ("models/open_clip.py",),
    "timm": (),
    "faiss": ("detection/faiss_search.py",),
}
FILE_LINES, FILE_GOAL = 400, 300
FUNCTION_LINES, FUNCTION_GOAL = 80, 60
HEADER = re.compile(r"# Copyright \d{4} The hf_clipbd authors\. Licensed under the Apache License, Version 2\.0\.")
VAGUE_NAMES = {"utils", "util", "misc", "common", "helpers", "helper"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


# -- what a file imports ----------------------------------------------------------------------------------------------


def imported_names(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) for every import in a file of the package, inside functions too.

    `from a import b` yields `a.b`: whether `b` is a module or a name in it cannot be told and need not be.
    """
    folder = ["hf_clipbd", *Path(path).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ONE_PLACE:
                yield node.lineno, name


def check_ranks(tree: ast.Module, path: str) -> Iterator[str]:
    """Yield a line for each import of a room that does not stand below the file's own."""
    room = Path(path).parts[0].removesuffix(".py")
    if room == "__init__":  # the package's own door holds the version and opens no room
        yield from (f"{path}:{line} imports {name}" for line, name in imported_names(tree, path))
        return
    if room not in RANKS:
        yield f"{path}: room `{room}` has no rank"
        return
    for line, name in imported_names(tree, path):
        parts = name.split(".")
        if parts[0] != "hf_clipbd" or len(parts) < 2 or parts[1] in (room, "__version__"):
            continue
        if RANKS.get(parts[1], len(RANKS)) >= RANKS[room]:
            yield f"{path}:{line} `{room}` imports `{parts[1]}`, which does not stand below it"


def check_one_place(tree: ast.Module, path: str) -> Iterator[str]:
    """Yield a line for each import of a third-party name away from the one file that meets it."""
    for line, name in imported_names(tree, path):
        for third_party, places in ONE_PLACE.items():
            inside = name == third_party or name.startswith(third_party + ".")
            if inside and not any(
                path == place or (place.endswith("/") and path.startswith(place)) for place in places
            ):
                yield f"{path}:{line} imports `{name}`, which belongs in {places or 'no file'}"


# -- how a file is written --------------------------------------------------------------------------------------------


def is_public(name: str) -> bool:
    """Return whether a name is meant for readers outside its file."""
    return not name.startswith("_")


def check_annotations(function: Function, path: str, method: bool) -> Iterator[str]:
    """Yield a line where an argument or the returned value has no type."""
    spec = function.args
    arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    is_static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in function.decorator_list)
    if method and not is_static:
        arguments = arguments[1:]
    bare = [argument.arg for argument in arguments if argument.annotation is None]
    if bare:
        yield f"{path}:{function.lineno} `{function.name}` has arguments without a type: {', '.join(bare)}"
    if function.returns is None and function.name != "__init__":
        yield f"{path}:{function.lineno} `{function.name}` has no return type"


def check_documented(tree: ast.Module, path: str) -> Iterator[str]:
    """Yield a line for each public function, class or method without docstring or types.

    A method of a class with a base may override a documented one, so there only types are asked for.
    """
    if ast.get_docstring(tree) is None:
        yield f"{path}: the module has no docstring"
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or not is_public(node.name):
            continue
        if ast.get_docstring(node) is None:
            yield f"{path}:{node.lineno} `{node.name}` has no docstring"
        if isinstance(node, Function):
            yield from check_annotations(node, path, method=False)
            continue
        for member in (member for member in node.body if isinstance(member, Function)):
            if is_public(member.name) or member.name in ("__init__", "__call__"):
                yield from check_annotations(member, path, method=True)
            if is_public(member.name) and not node.bases and ast.get_docstring(member) is None:
                yield f"{path}:{member.lineno} `{node.name}.{member.name}` has no docstring"


def check_manners(tree: ast.Module, path: str) -> Iterator[str]:
    """Yield a line for each print outside the command line, each assert, broad except and vague file name."""
    yield from (f"{path}: `{part}` says nothing" for part in Path(path).with_suffix("").parts if part in VAGUE_NAMES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = {"Exception", "BaseException"}
            if any(one is None or (isinstance(one, ast.Name) and one.id in broad) for one in caught):
                yield f"{path}:{node.lineno} catches everything"
        elif isinstance(node, ast.Assert):
            yield f"{path}:{node.lineno} asserts; raise ValueError or TypeError instead"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if not path.startswith("cli/"):
                yield f"{path}:{node.lineno} prints; log instead"


def check_length(tree: ast.Module, path: str, source: str, lines: int, function_lines: int) -> Iterator[str]:
    """Yield a line for the file if it is over `lines`, and for each function over `function_lines`."""
    total = len(source.splitlines())
    if total > lines:
        yield f"{path} has {total} lines, more than {lines}"
    for node in ast.walk(tree):
        if isinstance(node, Function) and (length := node.end_lineno - node.lineno + 1) > function_lines:
            yield f"{path}:{node.lineno} `{node.name}` has {length} lines, more than {function_lines}"


def twice_written(files: dict[str, str]) -> list[str]:
    """Return the functions of these files whose body another function has, word for word, but for the shortest."""
    found: dict[str, list[str]] = {}
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, Function):
                body = node.body[ast.get_docstring(node) is not None :]
                if sum(1 for statement in body for _ in ast.walk(statement)) >= 12:
                    text = "".join(map(ast.dump, body))
                    found.setdefault(text, []).append(f"{path}:{node.lineno} `{node.name}`")
    return [" is ".join(names) for names in found.values() if len(names) > 1]


def check_text(source: str, path: str) -> Iterator[str]:
    """Yield a line where the copyright header is missing or work was left for later."""
    if not HEADER.fullmatch(source.partition("\n")[0]):
        yield f"{path}: the first line is not the copyright header"
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"#.*\b(TO[D]O|FIX[M]E|XX[X])\b", line):
            yield f"{path}:{number} leaves work for later"


# -- the rules, over the package --------------------------------------------------------------------------------------


def sources(folder: Path = PACKAGE) -> dict[str, str]:
    """Return path below `folder` -> source of every Python file there."""
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))}


def violations(check: Callable, files: dict[str, str]) -> list[str]:
    """Return what `check(tree, path)` says about all files."""
    return [line for path, source in files.items() for line in check(ast.parse(source), path)]


@pytest.mark.parametrize("check", [check_ranks, check_one_place, check_documented, check_manners])
def test_package_follows(check):
    files = sources()
    assert len(files) > 2
    assert violations(check, files) == []


def test_files_and_functions_are_short():
    files = sources() | {f"recipes/{path}": source for path, source in sources(ROOT / "recipes").items()}
    for path, source in files.items():
        for line in check_length(ast.parse(source), path, source, FILE_GOAL, FUNCTION_GOAL):
            warnings.warn(f"over the goal: {line}", stacklevel=1)
    long = [
        line
        for path, source in files.items()
        for line in check_length(ast.parse(source), path, source, FILE_LINES, FUNCTION_LINES)
    ]
    assert long == []


def test_no_function_is_written_twice():
    assert twice_written(sources()) == []


@pytest.mark.parametrize("folder", ["src", "tests", "recipes"])
def test_headers(folder):
    files = sources(ROOT / folder)
    assert [line for path, source in files.items() for line in check_text(source, f"{folder}/{path}")] == []


# -- the names other work relies on -----------------------------------------------------------------------------------

PUBLIC_NAMES = {
    "hf_clipbd": "__version__",
    "hf_clipbd.schema": "EvalReport PoisonManifest Rate RunRecord TriggerReport IS_POISONED SOURCE_INDEX TRIGGER",
    "hf_clipbd.losses": "clip_loss one_way_loss in_modal_loss counterfactual_loss gather_with_grad",
    "hf_clipbd.features": "embed_images embed_texts embed_pairs embed_dataset logit_scale",
    "hf_clipbd.captions": "factual_caption counterfactual_caption",
    "hf_clipbd.models": "CLIPResNetConfig CLIPResNetModel load_dual_encoder",
    "hf_clipbd.scenes": "load_scenes load_clean_clip CLASS_NAMES",
    "hf_clipbd.attacks": "ATTACKS Attack BadNets PoisonTransform poison_dataset",
    "hf_clipbd.trainer": "CLIPTrainer CLIPTrainingConfig",
    "hf_clipbd.defenses": "DEFENSES CleanCLIPConfig CleanCLIPTrainer CleanerCLIPConfig CleanerCLIPTrainer",
    "hf_clipbd.detection": "DETECTORS BackdoorDetection detect",
    "hf_clipbd.evaluation": "ZeroShotEvaluator evaluate_zero_shot",
    "hf_clipbd.report": "write_report comparison_table",
    "hf_clipbd.hub": "write_cards push_run",
    "hf_clipbd.cli": "main",
}


@pytest.mark.parametrize("module", PUBLIC_NAMES)
def test_public_names_stay(module):
    found = importlib.import_module(module)
    assert [name for name in PUBLIC_NAMES[module].split() if not hasattr(found, name)] == []


# -- the checks can fail ----------------------------------------------------------------------------------------------

GOOD = '''"""A room."""
import numpy as np
from hf_clipbd import __version__
from hf_clipbd.schema import Rate
from .pairs import collate


def embed(images: list, *, size: int = 2) -> int:
    """Return nothing much."""
    try:
        return size
    except (KeyError, ValueError):
        return 0


class Room:
    """A room."""

    def __init__(self, size: int):
        self.size = size

    def double(self) -> int:
        """Return twice the size."""
        return self._half() * 4

    def _half(self):
        return self.size // 2
'''


@pytest.mark.parametrize("check", [check_ranks, check_one_place, check_documented, check_manners])
def test_good_code_passes(check):
    assert violations(check, {"data/__init__.py": GOOD}) == []


@pytest.mark.parametrize(
    ("check", "path", "bad", "says"),
    [
        (check_ranks, "losses.py", "import hf_clipbd.schema", "`losses` imports `schema`"),
        (check_ranks, "data/pairs.py", "def f():\n    from hf_clipbd.trainer import CLIPTrainer", "imports `trainer`"),
        (check_ranks, "data/pairs.py", "from hf_clipbd import models", "imports `models`"),
        (check_ranks, "data/pairs.py", "from ..captions import parse", "imports `captions`"),
        (check_ranks, "data/__init__.py", "from .. import captions", "imports `captions`"),
        (check_ranks, "trainer.py", "from .defenses import DEFENSES", "imports `defenses`"),
        (check_ranks, "trainer.py", "importlib.import_module('hf_clipbd.cli')", "imports `cli`"),
        (check_ranks, "trainer.py", "from hf_clipbd.cellar import wine", "imports `cellar`"),
        (check_ranks, "cellar.py", "", "has no rank"),
        (check_ranks, "__init__.py", "import torch", "imports torch"),
        (check_one_place, "defenses/ft.py", "from transformers import AutoModel, Trainer", "`transformers.Trainer`"),
        (check_one_place, "defenses/ft.py", "import transformers\nx = transformers.Trainer", "`transformers.Trainer`"),
        (check_one_place, "report.py", "def f():\n    import evaluate", "`evaluate`"),
        (check_one_place, "attacks/base.py", "from huggingface_hub import hf_hub_download", "`huggingface_hub."),
        (check_one_place, "models/resnet.py", "import torchvision.transforms", "no file"),
        (check_documented, "losses.py", "x = 1", "module has no docstring"),
        (check_documented, "losses.py", "def f() -> int:\n    return 1", "`f` has no docstring"),
        (check_documented, "losses.py", "def f(x) -> int:\n    'Return.'", "without a type: x"),
        (check_documented, "losses.py", "def f(*x: int, **y) -> int:\n    'Return.'", "without a type: y"),
        (check_documented, "losses.py", "def f(x: int):\n    'Return.'", "`f` has no return type"),
        (check_documented, "losses.py", "class A:\n    x = 1", "`A` has no docstring"),
        (check_documented, "losses.py", "class A:\n    'A.'\n    def f(self) -> int: ...", "`A.f` has no docstring"),
        (check_documented, "losses.py", "class A(B):\n    'A.'\n    def f(self, x) -> int: ...", "without a type: x"),
        (check_manners, "losses.py", "print('loss')", "prints"),
        (check_manners, "losses.py", "assert True", "asserts"),
        (check_manners, "losses.py", "try:\n    f()\nexcept Exception:\n    pass", "catches everything"),
        (
            check_manners,
            "losses.py",
            "try:\n    f()\nexcept (KeyError, BaseException):\n    pass",
            "catches everything",
        ),
        (check_manners, "losses.py", "try:\n    f()\nexcept:\n    pass", "catches everything"),
        (check_manners, "data/utils.py", "", "`utils` says nothing"),
    ],
)
def test_bad_code_is_seen(check, path, bad, says):
    assert any(says in line for line in violations(check, {path: bad}))


def test_long_files_and_functions_are_seen():
    source = "def f():\n" + "    x = 1\n" * 5
    tree = ast.parse(source)
    assert list(check_length(tree, "f.py", source, 6, 6)) == []
    assert len(list(check_length(tree, "f.py", source, 5, 5))) == 2


def test_a_function_written_twice_is_seen():
    body = "(name):\n    return name.replace('_', ' ').strip().lower()\n"
    files = {"a.py": f"def plain{body}", "b.py": f"def folded{body}", "c.py": "def f(x):\n    return x"}
    assert twice_written(files) == ["a.py:1 `plain` is b.py:1 `folded`"]
    assert twice_written({**files, "b.py": files["c.py"]}) == []


def test_missing_header_and_postponed_work_are_seen():
    header = "# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0."
    postponed = "x = 1  # TO" + "DO: later"
    assert list(check_text(f"{header}\nx = 1\n", "f.py")) == []
    assert len(list(check_text(f"x = 1\n{postponed}\n", "f.py"))) == 2


def test_cli_may_print():
    assert violations(check_manners, {"cli/command.py": "print('done')"}) == []
