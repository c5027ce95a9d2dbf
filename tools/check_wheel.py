"""Check dist/: the wheel, which has to be installed where this runs, and the sdist.

What they have to hold is read off the files that git tracks, so a new package, header or document
that is named nowhere fails here. Run it with `python -I`, which keeps the tree out of sys.path.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePath

import numpy as np

import sampler
from sampler import Sampler

ROOT = Path(__file__).parents[1]


def installed():
    """The wheel works, in an environment that has NumPy alone."""
    assert sampler.__file__.startswith(sys.prefix), sampler.__file__
    assert sampler.__version__ == importlib.metadata.version("token-sampler")
    for name in ("torch", "transformers"):
        assert importlib.util.find_spec(name) is None, f"{name} is here"
    print(Sampler(temperature=0.8, top_p=0.9, seed=7)(np.array([1.0, 2.0, 3.0])))


def only(pattern):
    (path,) = (ROOT / "dist").glob(pattern)
    return path


def contents():
    """The wheel holds the Python files of the package, the sdist all but dot files."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z"]
    tracked = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
    tree = {name for name in tracked if name and not name.startswith(".")}
    package = {name for name in tree if name.startswith("sampler/")}
    python = {name for name in package if PurePath(name).suffix in {".py", ".pyi", ".typed"}}

    wheel = {
        name
        for name in zipfile.ZipFile(only("*.whl")).namelist()
        if not name.startswith("token_sampler-") and PurePath(name).suffix not in {".so", ".pyd"}
    }
    assert wheel == python, f"only in the wheel, or only in the tree: {sorted(wheel ^ python)}"

    with tarfile.open(only("*.tar.gz")) as archive:
        sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert tree <= sdist, f"not in the sdist: {sorted(tree - sdist)}"
    assert "sampler/_core.c" not in sdist


installed()
contents()
