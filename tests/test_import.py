"""What `import sampler` needs, and what it says where it finds no core."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sampler

PACKAGE = Path(sampler.__file__).parent
HEAVY = ("torch", "transformers", "scipy", "ml_dtypes", "hypothesis", "mpmath")


def python(code, path, cwd, *options):
    """Run code in a fresh interpreter that finds `sampler` in `path` first."""
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *options, "-W", "error", "-c", code],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def modules(tmp_path):
    code = (
        "import sys, sampler\n"
        "assert sampler.Sampler(top_p=0.9, seed=7)([1.0, 3.0, 2.0, 0.0]) in range(4)\n"
        "assert sampler.softmax([1.0, 2.0]).shape == (2,)\n"
        "print(sampler.__file__, *sorted(sys.modules), sep='\\n')"
    )
    run = python(code, PACKAGE.parent, tmp_path)
    assert run.returncode == 0, run.stderr
    file, *names = run.stdout.split("\n")
    assert Path(file).parent == PACKAGE
    return set(names)


def test_numpy_alone_is_imported(modules):
    assert "numpy" in modules
    tops = {name.partition(".")[0] for name in modules}
    assert not tops & set(HEAVY)
    # Nor anything else from outside the standard library.
    foreign = tops - set(sys.stdlib_module_names) - {"numpy", "sampler", "", "__main__"}
    foreign -= {"cython_runtime"}  # a name that every Cython module leaves
    assert not {name for name in foreign if not name.startswith("_")}


def test_the_adapters_are_not_imported(modules):
    assert not {name for name in modules if name.startswith("sampler.hf")}
    assert "sampler.reference" not in modules


# What only a tensor has, and where torch would be looked up.
OF_TENSORS = {
    "torch", "requires_grad", "detach", "is_neg", "resolve_neg", "is_cpu", "is_nested", "layout",
    "from_numpy", "modules",
}  # fmt: skip


def test_one_file_knows_what_a_tensor_is():
    # The first names the module sampler.torch.
    elsewhere = {PACKAGE / "__init__.py", PACKAGE / "_tensors.py"}
    elsewhere |= {PACKAGE / "testing" / "_adapters.py"}
    for file in set(PACKAGE.rglob("*.py")) - elsewhere:
        if {PACKAGE / "hf", PACKAGE / "torch"} & set(file.parents):
            continue
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {n.id for n in nodes if isinstance(n, ast.Name)}
        names |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
        names |= {n.name for n in nodes if isinstance(n, ast.alias)}
        assert not names & OF_TENSORS, file


def test_it_works_without_docstrings(tmp_path):
    code = "import sampler, sampler.hf; assert sampler.Sampler.__doc__ is None"
    run = python(code, PACKAGE.parent, tmp_path, "-OO", "-W", "ignore")
    assert run.returncode == 0, run.stderr


def test_a_missing_core_is_one_sentence(tmp_path):
    copy = tmp_path / "sampler"
    copy.mkdir()
    for file in PACKAGE.glob("*.py"):
        shutil.copy(file, copy)
    # -S: without site-packages, where an editable install would find the core after all.
    run = python("import sampler", tmp_path, tmp_path, "-S")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sampler's compiled core is missing")
    assert "pip install -e ." in last
    assert last.endswith(".")


def test_a_broken_core_keeps_its_own_error(tmp_path):
    copy = tmp_path / "sampler"
    copy.mkdir()
    for file in PACKAGE.glob("*.py"):
        shutil.copy(file, copy)
    (copy / "_core.py").write_text("import no_such_module_of_the_core\n")
    run = python("import sampler", tmp_path, tmp_path)
    assert run.returncode == 1
    assert "no_such_module_of_the_core" in run.stderr


@pytest.mark.parametrize(
    ("library", "found"),
    [("torch", "None"), ("transformers", "None"), ("transformers", "types.ModuleType('empty')")],
)
def test_the_hugging_face_layer_says_what_it_lacks(tmp_path, library, found):
    # The empty module stands for a release of transformers that lacks a name.
    code = f"import sys, types\nsys.modules[{library!r}] = {found}\nimport sampler.hf"
    run = python(code, PACKAGE.parent, tmp_path)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sampler.hf needs torch, and transformers 5 or newer (")
    assert last.endswith('); they come with pip install ".[hf]" in a clone of token-sampler')


def test_every_package_is_in_the_wheel():
    # They are listed by name, and an editable install finds one that the list lacks.
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)
