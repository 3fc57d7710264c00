"""The walls of the house: who may import what, and the rules that keep each file honest, read by `ast`."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffalign"

FLOORS = {
    "records": 0, "entries": 0, "folders": 0, "streams": 0, "progress": 0, "places": 0, "weights": 0, "decoding": 0,
    "manifest": 0, "conversions": 0, "intervals": 0, "card": 0, "rules": 0, "sets": 0, "outsiders": 0,
    "prompts": 0, "worklist": 0, "keeping": 1, "drawing": 3, "plan": 3, "redrawing": 3, "jury": 3, "job": 3,
    "calibration": 0, "choices": 1, "fitting": 3, "learning": 3,
    "alarms": 0, "counting": 1, "wrapping": 1, "policy_files": 1,
    "adapters": 1, "attention": 1, "activations": 1, "quantization": 1, "compiling": 1, "optimizers": 1,
    "objectives": 1, "diffusion": 1, "times": 1, "inversion": 1, "scorers": 1, "checkpoint": 1, "shapes": 1,
    "run": 2, "recipes": 2, "backbones": 2, "cache": 2, "scoring": 2, "pairing": 2, "filtering": 2, "inspecting": 2,
    "dataset": 2, "verdicts": 2,
    "processes": 0, "inputs": 2,
    "comparing": 2, "readers": 2, "importing": 2, "pushing": 2, "judging": 2, "measuring": 2, "journal": 2,
    "deciding": 3, "accelerators": 3, "launching": 3,
    "selecting": 1, "fifa": 1, "buckets": 1, "views": 1, "index": 1, "material": 3, "observations": 2, "gallery": 2,
    "grouping": 2, "gathering": 2, "captioning": 2,
    "combining": 1,
    "policy": 3, "states": 3, "sampling": 3, "export": 3, "passes": 3, "bank": 3, "step": 4,
    "needs": 4, "trainer": 4, "training": 4, "report": 4, "demo": 4, "doctor": 4, "train_scorer": 4,
    "curves": 4, "findings": 4, "pictures": 4, "evaluating": 4, "tracking": 4, "watching": 4,
    "cli": 5, "parsing": 4, "__main__": 6,
}  # fmt: skip
# what a report is made of lies in files of its own, and they may import each other
SAME_FLOOR = {
    ("sampling", "plan"), ("sampling", "drawing"), ("sampling", "redrawing"), ("plan", "drawing"),
    ("redrawing", "plan"), ("redrawing", "drawing"), ("sampling", "jury"),
    ("sampling", "job"), ("job", "plan"), ("job", "drawing"), ("verdicts", "inputs"), ("scoring", "verdicts"),
    ("dataset", "cache"), ("times", "diffusion"), ("inversion", "diffusion"), ("journal", "run"), ("recipes", "run"),
    ("learning", "fitting"),
    ("passes", "policy"), ("passes", "states"), ("passes", "bank"), ("trainer", "step"), ("training", "trainer"),
    ("report", "curves"), ("report", "findings"), ("report", "pictures"),
    ("curves", "findings"), ("curves", "pictures"), ("findings", "pictures"), ("pictures", "findings"),
    ("training", "tracking"), ("training", "watching"), ("watching", "trainer"), ("watching", "tracking"),
    ("watching", "evaluating"), ("watching", "findings"), ("evaluating", "pictures"), ("doctor", "parsing"),
    ("demo", "training"), ("demo", "report"), ("scorers", "shapes"), ("scoring", "inputs"), ("inputs", "readers"),
    ("importing", "readers"), ("inspecting", "readers"), ("inspecting", "observations"), ("inspecting", "gallery"),
    ("pairing", "grouping"), ("pairing", "gathering"), ("states", "material"), ("pushing", "readers"),
    ("observations", "readers"), ("gallery", "observations"), ("gallery", "readers"), ("doctor", "needs"),
    ("optimizers", "wrapping"), ("training", "parsing"),
}  # fmt: skip
HEAVY = {
    "tyro": {"parsing"},
    "accelerate": {"trainer", "tracking"},
    "peft": {"policy", "backbones"},
    "matplotlib": {"report", "curves", "findings", "pictures"},
    "jinja2": {"report", "curves", "findings", "pictures"},
    "diffusers": {"backbones", "export"},
    "transformers": {"scorers", "backbones"},
    "open_clip": {"scorers"},
    "tensorboard": {"tracking"},
    "datasets": set(),
}
WITHOUT_TORCH = {
    "records", "folders", "manifest", "streams", "progress", "places", "decoding", "pairing", "comparing", "cli",
    "parsing", "__main__",
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def head(path: Path) -> str:
    return name_of(path).split(".")[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Dotted names that a file imports, `from a import b` as "a.b"; without `lazy` only those at its top."""
    nodes = ast.walk(tree(path)) if lazy else iter(tree(path).body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """Parts of this package that a file imports, by their first name below it."""
    names = {n.split(".")[1] for n in imported(path) if n.startswith("diffalign.")}
    return names - {"__version__"}


def loaded(name: str) -> set[str]:
    """All modules, by top-level name or dotted below the package, that importing `diffalign.NAME` brings along."""
    files = {name_of(p).removesuffix(".__init__"): p for p in sources()}
    found, todo = set(), [name]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        found.add(current)
        if current not in files:
            continue
        for dotted in imported(files[current], lazy=False):
            if not dotted.startswith("diffalign."):
                found.add(dotted.split(".")[0])
                continue
            words = dotted.split(".")[1:]
            todo += [".".join(words[: i + 1]) for i in range(len(words))]
    return found


parametrised = pytest.mark.parametrize("path", sources(), ids=name_of)


@parametrised
def test_imports_go_down_only(path: Path) -> None:
    here = head(path)
    if here == "__init__":
        assert not own(path), "the package itself imports nothing of its own"
        return
    assert here in FLOORS, f"{here} stands on no floor: enter it in the table and in the plan"
    for other in own(path):
        assert other in FLOORS, f"{here} imports {other}, which stands on no floor"
        if other == here or FLOORS[other] < FLOORS[here]:
            continue
        assert FLOORS[other] == FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[other]})"
        assert (here, other) in SAME_FLOOR or FLOORS[here] == 0, f"{here} imports its neighbour {other}"


@parametrised
def test_heavy_imports_where_they_belong(path: Path) -> None:
    here = head(path)
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in HEAVY or here in HEAVY[top], f"{name_of(path)} imports {top}"
        if top == "huggingface_hub":
            assert name_of(path) in ("weights", "readers.hub")
            assert top not in {n.split(".")[0] for n in imported(path, lazy=False)}, "only for a hub id that was named"
        if name.startswith("torch.utils.tensorboard"):
            assert here == "tracking"
        if top == "torch":
            assert here not in WITHOUT_TORCH, f"{name_of(path)} imports torch"
    if here in ("pairing", "comparing"):
        allowed = {"numpy", "diffalign", "pyarrow", *sys.stdlib_module_names}
        assert {n.split(".")[0] for n in imported(path)} <= allowed


@pytest.mark.parametrize("name", ["records", "folders", "pairing", "comparing", "cli", "places"])
def test_numbers_only_files_bring_no_torch_along(name: str) -> None:
    if name not in {name_of(p) for p in sources()}:
        pytest.fail(f"{name}.py is not there")
    heavy = {"torch", "torchvision", "diffusers", "transformers", "open_clip", "accelerate", "peft", "datasets"}
    assert not loaded(name) & heavy


@parametrised
def test_words(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    if head(path) == "backbones":
        assert "chosen" not in text
    if head(path) == "scorers":
        assert "pair" not in text.replace("object_pairs_hook", "")


@parametrised
def test_no_branch_on_the_backbone(path: Path) -> None:
    """What is true of one family stands in its class: nobody else imports that, or compares with a family's name."""
    if head(path) == "backbones":
        return
    names, classes = families()
    used = [name for name in imported(path) if name.startswith("diffalign.backbones.")]
    assert not {name.split(".")[-1] for name in used} & classes, f"{name_of(path)} imports a family's class"
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Attribute, ast.Name)):
            assert (node.attr if isinstance(node, ast.Attribute) else node.id) not in classes, f"{path}:{node.lineno}"
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            told = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not told & names, f"{path}:{node.lineno}: compares with {', '.join(told & names)}"


@functools.cache
def families() -> tuple[set[str], set[str]]:
    """(names, classes) of the families: every class below `backbones` that says its `family`."""
    names, classes = set(), set()
    for path in sorted((PACKAGE / "backbones").glob("*.py")):
        for node in tree(path).body:
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(line, ast.Assign) and [t.id for t in line.targets] == ["family"]:
                    names.add(line.value.value)
                    classes.add(node.name)
    assert {"sdxl", "sd3"} <= names
    return names, classes


@parametrised
def test_objectives_see_torch_and_their_own_folder_only(path: Path) -> None:
    if head(path) != "objectives":
        return
    tops = {n.split(".")[0] for n in imported(path)}
    assert tops <= {"torch", "diffalign", *sys.stdlib_module_names}
    assert own(path) <= {"objectives"}


@parametrised
def test_no_back_doors(path: Path) -> None:
    assert path.name not in ("utils.py", "helpers.py", "common.py", "misc.py")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("hasattr", "eval", "exec"), f"{path}:{node.lineno}: {called}"
            attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            owner = node.func.value.id if attribute and isinstance(node.func.value, ast.Name) else ""
            tensors_only = any(
                k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
                for k in node.keywords
            )
            restricted = head(path) == "scorers" and tensors_only
            assert (owner, attribute) != ("torch", "load") or restricted, f"{path}:{node.lineno}: unpickles"
            assert (owner, attribute) not in (("pickle", "load"), ("pickle", "loads"))
            for keyword in node.keywords:
                assert keyword.arg != "trust_remote_code", f"{path}:{node.lineno}"
        if isinstance(node, ast.Global):
            pytest.fail(f"{path}:{node.lineno}: global {', '.join(node.names)}")


@parametrised
def test_no_forwarded_keywords(path: Path) -> None:
    """A `**kwargs` of one's own that is passed on hides what a function takes; a record of known fields is fine."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.args.kwarg is None:
            continue
        name, where = node.args.kwarg.arg, f"{path}:{node.lineno}"
        assert name not in ("kwargs", "kw", "options"), f"{where}: **{name}"
        passed = [
            k for call in ast.walk(node) if isinstance(call, ast.Call) for k in call.keywords
            if k.arg is None and isinstance(k.value, ast.Name) and k.value.id == name
        ]  # fmt: skip
        assert not passed or (head(path), node.name) in (("records", "pair"), ("parsing", "bind")), (
            f"{where}: forwards **{name}"
        )


@parametrised
def test_no_silenced_errors_and_no_mutable_module_state(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
            assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), f"{path}:{node.lineno}: silenced"
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.List, ast.Dict, ast.Set)):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            constants = all(n.isupper() or n.startswith("__") or n.lstrip("_").isupper() for n in names)
            assert constants, f"{path}:{node.lineno}: {names} can be changed by anybody"


@parametrised
def test_size(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines), default=0) <= 120
    assert len(lines) <= 340, f"{path}: {len(lines)} lines; a file this long has a second subject"


def test_the_package_speaks_only_of_itself() -> None:
    words = ("/work/", "/tmp/w", "house.md", "helper")
    for path in (*sources(), *sorted((ROOT / "train").glob("*.py")), ROOT / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert not [w for w in words if w in text], path


def test_scripts_are_imported_by_nobody() -> None:
    stems = {p.stem for p in (ROOT / "scripts").glob("*.py")}
    for path in sources():
        assert not {n.split(".")[0] for n in imported(path)} & (stems | {"scripts", "tests", "train"}), path


def test_help_is_light() -> None:
    code = """
import sys
sys.argv = ["diffalign", "--help"]
from diffalign.cli import main
main()
heavy = {"torch", "numpy", "diffusers", "transformers", "pyarrow"} & set(sys.modules)
print("HEAVY", sorted(heavy - {"numpy", "pyarrow"}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "usage: diffalign" in out
    assert "HEAVY []" in out
