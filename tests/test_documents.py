"""The documents: short, linked, in plain words. Their examples run as doctests."""

import importlib
import re
from pathlib import Path

import pytest

import sampler

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [
    *PAGES,
    ROOT / "Makefile",
    *(ROOT / "demos").glob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    *(
        path
        for end in ("py", "pyi", "pyx", "pxi", "pxd", "h")
        for path in (ROOT / "sampler").rglob(f"*.{end}")
    ),
]

# What crept in once, and what a reader of English expects in its place.
AVOID = {
    "behind": "after", "beside": "next to", "anew": "again", "whoever": "anyone who",
    "tell of": "report", "tells of": "reports", "told": "reported",
    "some minutes": "a few minutes", "save where": "except where",
}  # fmt: skip


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_screen():
    assert len(README.read_text().splitlines()) < 190


def test_the_readme_links_every_page():
    linked = set(re.findall(r"\]\(([\w/.]+)", README.read_text()))
    assert {path.relative_to(ROOT).as_posix() for path in PAGES[1:]} <= linked


@each(PAGES)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith("https:"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@each(TEXTS)
def test_plain_words(path):
    found = re.findall(rf"\b(?:{'|'.join(AVOID)})\b", path.read_text(), re.IGNORECASE)
    assert {word: AVOID[word.lower()] for word in found} == {}


@each(TEXTS)
def test_per_is_written_out(path):
    """Not "one a row", except where a page quotes an old message."""
    counted = r"(?:one|two|\d+|bytes|draws|instructions|tokens)"
    each = r"(?:row|token|call|draw|bin|stage)"
    found = re.findall(rf"\b{counted} an? {each}\b", path.read_text())
    quoted = ["one a row"] if path.name == "migrating.md" else []
    assert found == quoted


@each(PAGES)
def test_prose_has_one_width(path):
    lines = prose(path).splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


# Nothing next to them is more use to a reader.
ALONE = {
    "sampler.build_info",
    *(
        f"{place}.{name}.compiled"
        for place in ("sampler", "sampler.stages")
        for name in sampler.stages.edits.__all__
        if "compiled" in vars(getattr(sampler, name))
    ),
    *(
        f"{place}.{name}.{method}"
        for place in ("sampler", "sampler.stages")
        for name in sampler.stages.memories.__all__
        for method in ("initial", "parameter", "after")
    ),
    "sampler.XTC.branches",
    "sampler.stages.XTC.branches",
    "sampler.temperature.Reliability.plot",
    "sampler.testing.Result.plot",
}


def _public():
    """Every public function, class and method: its module, its name, and itself."""
    names = ("", ".hf", ".logprobs", ".torch", ".temperature", ".testing", ".stages")
    for module in (importlib.import_module(f"sampler{name}") for name in names):
        for name in module.__all__:
            found = getattr(module, name)
            if callable(found):
                yield module, f"{module.__name__}.{name}", found
            if isinstance(found, type):
                for method in vars(found):
                    if not method.startswith("_") and callable(getattr(found, method)):
                        yield module, f"{module.__name__}.{name}.{method}", getattr(found, method)


def _see_also(found):
    """The names in a docstring's See Also section."""
    section = re.search(r"See Also\n *-+\n((?: +\S+ : .*\n)+)", found.__doc__ or "")
    return re.findall(r"^ +(\S+) : ", section[1] if section else "", re.MULTILINE)


def test_see_also_names_what_there_is():
    for module, public, found in _public():
        for name in _see_also(found):
            first, *others = name.split(".")
            target = sampler if first == "sampler" else getattr(module, first)
            for other in others:
                target = getattr(target, other)
            assert target.__doc__, name
            assert target is not found, public


def test_every_public_docstring_leads_to_its_neighbours():
    without = {public for _, public, found in _public() if not _see_also(found)}
    assert without == ALONE
