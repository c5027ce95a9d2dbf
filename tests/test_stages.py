"""What a stage states once, and who reads it: checks, messages, signatures, documents, the core.

A new stage is a dataclass and a line of `Settings` in sampler/stages, a number in core/row.pxd and
a function in core/stages.pxd, its twin in reference.py, a row of the tests' table in law.py, and a
row in docs/law.md. An edit has no function in the core: its dataclass says which logits change.
"""

import ast
import inspect
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sampler
from law import TABLE, check_chain
from law import given as given_text
from sampler import Sampler, stages
from sampler._checks import Biases, Flag, HasArray, Ids, Integers, Range, Reals, Sequences
from sampler.stages import (
    DRY,
    XTC,
    AdaptiveP,
    DynamicTemperature,
    MinNewTokens,
    Mirostat,
    Smoothing,
)
from sampler.stages.base import Stage
from sampler.stages.settings import STAGES, Settings

PACKAGE = Path(sampler.__file__).parent
ROOT = PACKAGE.parent
EVERY = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
ROW = np.array([1.0, 3.0, 2.0, 2.0, -np.inf, 0.0])


def inside(range_):
    if isinstance(range_, Ids):  # some of those of ROW
        return st.lists(st.integers(0, 3)).map(lambda ids: tuple(sorted(set(ids))))
    if isinstance(range_, Flag):
        return st.booleans()
    token = st.integers(0, 3)
    sequences = st.lists(token, min_size=1, max_size=3).map(tuple)
    if isinstance(range_, Sequences):
        return st.lists(sequences).map(lambda some: tuple(dict.fromkeys(some)))
    if isinstance(range_, Biases):
        biases = st.one_of(st.just(-math.inf), st.floats(-9, 9))
        key = sequences if range_.sequences else token
        value = token if range_.integers else biases
        return st.dictionaries(key, value).map(lambda found: tuple(sorted(found.items())))
    if range_.kind is int:
        numbers = st.integers(min_value=range_.low, max_value=range_.high)
        return st.one_of(*[st.none()] * range_.optional, numbers)
    high = sys.float_info.max if range_.high is None else range_.high
    low = max(range_.low, -sys.float_info.max)
    opens, closes = range_.ends[0] == "(", range_.ends[1] == ")"
    return st.floats(low, high, exclude_min=opens, exclude_max=closes)


def outside(range_):
    if isinstance(range_, Ids):
        return st.integers(max_value=-1).map(lambda token: (token,))
    if isinstance(range_, Sequences):
        return st.integers(max_value=-1).map(lambda token: ((token,),))
    low, high = range_.low, range_.high
    if range_.kind is int:
        above = [] if high is None else [st.integers(min_value=high + 1)]
        return st.one_of(st.integers(max_value=low - 1), *above)
    above = [st.just(math.inf)] if high is None else []
    if high is not None and high < math.inf:
        above = [st.floats(min_value=high, exclude_min=range_.ends[1] == "]")]
    below = st.floats(max_value=low, exclude_max=range_.ends[0] == "[")
    if low == -math.inf:
        below = st.nothing()
    return st.one_of(st.just(math.nan), below, *above)


# ------------------------------------------------------------------------------- the range, once


@EVERY
@given(data=st.data())
def test_values_in_the_range_are_kept(stage, data):
    values = tuple(data.draw(inside(one.range)) for one in stage.parameters.values())
    if stage is DynamicTemperature:  # low <= high
        values = (*sorted(values[:2]), values[2])
    if stage is MinNewTokens and not values[1]:
        values = (values[0], (0,))
    made = stage(*values)
    assert made.values == values
    s = Sampler(**{stage.setting: made.value}, seed=7)
    assert made in s.stages or made.is_off
    assert (
        Sampler(**{stage.setting: made}, seed=7).stages == Sampler([*s.stages]).stages
        or made.is_off
    )
    assert eval(repr(s), vars(sampler)).stages == s.stages
    assert 1 <= len(s.distribution(ROW, **given_text(s.stages))) <= 5
    check_chain(ROW, s.stages)


@EVERY
@given(data=st.data())
def test_values_outside_are_refused_in_one_sentence(stage, data):
    for place, (name, one) in enumerate(stage.parameters.items()):
        if isinstance(one.range, (Flag, Biases)):
            continue  # has no other values, only other types; or see test_edits.py
        values = [other.range.least if isinstance(other.range, Range) else other.off for other in
                  stage.parameters.values()]  # fmt: skip
        value = values[place] = data.draw(outside(one.range))
        keyword = value if len(values) == 1 else tuple(values)
        found = f"one is {value[0]}" if isinstance(one.range, Ids) else f"is {value}"
        if isinstance(one.range, Sequences):
            found = f"one is {value[0][0]}"
        message = re.escape(f"`{stage.label(name)}` has to be {one.range}, but {found}")
        with pytest.raises(ValueError, match=rf"^{message}( \([\d.]+\?\))?$"):
            stage(*values)
        with pytest.raises(ValueError, match=rf"^{message}( \([\d.]+\?\))?$"):
            Sampler(**{stage.setting: keyword})


@EVERY
def test_every_setting_is_a_change_of_a_configuration(stage):
    value = TABLE[stage].after
    for config in ({"do_sample": True}, {"do_sample": True, "top_p": 0.5}):
        s = Sampler.from_generation_config(config, **{stage.setting: value})
        assert stage.of(value) in s.stages


@EVERY
def test_stages_are_small(stage):
    assert not hasattr(stage(), "__dict__")


def test_a_stage_of_somebody_else_is_refused():
    class Other(Stage):
        setting, off, top_k = "top_k", 0, 3

        def __init__(self):
            pass

        def __repr__(self):
            return "Other()"

    with pytest.raises(TypeError, match=r"^`stages` has to hold stages such as"):
        Sampler([Other()])


@EVERY
def test_off_changes_nothing(stage):
    plain = Sampler(seed=7)
    for value in (stage.off, None):
        assert stage(value).is_off
        s = Sampler(**{stage.setting: value}, seed=7)
        assert np.array_equal(s.filter(ROW), ROW)
        assert repr(s) == repr(plain)
    assert stage() == stage(stage.off)


def test_signatures_list_the_settings():
    parameters = inspect.signature(Sampler).parameters
    shown = [(name, p.default, p.annotation) for name, p in parameters.items() if name in STAGES]
    kinds = {"float": Reals | None, "int": Integers | None}
    kinds["sequence of int"] = Collection[int] | None
    kinds["float, (float, float) or Smoothing"] = Reals | tuple[Reals, Reals] | Smoothing | None
    kinds["bool"] = bool | Collection[bool] | HasArray | None
    kinds["mapping of int to float"] = Mapping[int, float] | None
    kinds["mapping of int to int"] = Mapping[int, int] | None
    kinds["mapping of tuple of int to float"] = Mapping[tuple[int, ...], float] | None
    kinds["sequence of sequences of int"] = Iterable[int | Sequence[int]] | None
    several = tuple[Reals, ...] | DynamicTemperature | None
    kinds["(float, float, float) or DynamicTemperature"] = several
    kinds["(float, float, sequence of int, bool) or XTC"] = tuple[Any, ...] | XTC | None
    kinds["int, (int, float, float) or Mirostat"] = Reals | tuple[Reals, ...] | Mirostat | None
    kinds["float, (float, float) or AdaptiveP"] = Reals | tuple[Reals, ...] | AdaptiveP | None
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        kinds[STAGES[name].range.noun] = Reals | tuple[Any, ...] | None
    kinds[STAGES["dry"].range.noun] = Reals | tuple[Any, ...] | DRY | None
    kinds[STAGES["min_new_tokens"].range.noun] = tuple[Any, ...] | MinNewTokens | None
    kinds["int"] = Integers | None
    wanted = [(name, one.off, kinds[one.range.noun]) for name, one in STAGES.items()]
    wanted[list(STAGES).index("n_tokens")] = ("n_tokens", None, int | None)
    assert shown == wanted
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "stages")
    assert list(parameters)[: len(STAGES) + 1] == ["stages", *STAGES]
    with pytest.raises(
        TypeError, match=r"^Sampler\(\) got an unexpected keyword argument 'top_q': did you mean"
    ):
        Sampler(top_q=0.9)


# -------------------------------------------------------------------------------------- documents


@EVERY
def test_docstrings_state_range_and_off_value(stage):
    for name, one in stage.parameters.items():
        line = ", ".join(filter(None, [f"{name} : {one.range.noun}", one.range.interval]))
        if name == stage.switch and not stage.has_several:
            off = f"{one.off:g}" if type(one.off) in (int, float) else f"{one.off}"
            line += f", off at {off}\n" if one.off is None else f", off at {off} or None\n"
        assert f"\n    {line}" in stage.__doc__
    assert f"\n    {stage.described()}\n        See `{stage.__name__}`.\n" in Sampler.__doc__
    assert "{settings}" not in Sampler.__doc__
    for part in ("Raises", "Notes", "References"):
        assert f"\n    {part}\n" in stage.__doc__


@EVERY
def test_documents_state_range_and_off_value(stage):
    law = (ROOT / "docs" / "law.md").read_text()
    # A letter for each parameter, and the range of each number.
    intervals = [one.range.interval for one in stage.parameters.values()]
    letters = ", ".join([r"(\w+)"] * len(intervals))
    ranges = "".join(
        rf", \{place} {re.escape(one)}" for place, one in enumerate(intervals, 1) if one
    )
    off = re.escape(stage.off_text())
    assert re.search(
        rf"^\| `{stage.__name__}\({letters}\)`{ranges} \| {off} \| ", law, re.MULTILINE
    )
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [off for name, off in rows if name == stage.setting] == [stage.off_text()]


# ------------------------------------------------------------------------ where a stage is named

# The places that a new stage touches in the package.
PLACES = {"core/row.pxd", "core/stages.pxd", "core/edits.pxd", "reference.py",
          "_reference_edits.py", "stages/settings.py", "stages/edits.py", "stages/scales.py",
          "stages/cuts.py", "stages/memories.py"}  # fmt: skip
# Where some are named and a new one need not be: Hugging Face's settings and its versions of our
# stages, what the self-test chooses to draw with, and rooms of the core that one stage or a family
# of them needs.
EXCEPT = {"_names.py", "config.py", "hf/_filtering.py", "hf/_transformers.py",
          "testing/_selftest.py", "core/typical.pxd", "core/moments.pxd"}  # fmt: skip


def words_of(path):
    """The names and strings in a file's code, docstrings and comments left out."""
    if path.suffix != ".py":
        comments = r"/\*.*?\*/|//[^\n]*" if path.suffix == ".h" else r'""".*?"""|#[^\n]*'
        return set(re.findall(r"\w+", re.sub(comments, "", path.read_text(), flags=re.DOTALL)))
    tree = ast.parse(path.read_text())
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        words |= {getattr(node, name, None) for name in ("id", "attr", "arg", "name", "asname")}
    return words


def test_a_stage_is_named_in_five_places():
    # The fourth is law.TABLE, the fifth docs/law.md, which other tests hold to STAGES.
    names = {one.setting for one in STAGES.values()} | {one.__name__ for one in STAGES.values()}
    names |= {one.setting.upper() for one in STAGES.values()}  # as the core has them
    # Of the softmax family too, of the testing kit, and of `generate()`.
    names -= {"temperature", "Temperature", "smoothing", "n_tokens", "TokenCount", "min_new_tokens"}
    found = {}
    for path in PACKAGE.rglob("*"):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith("dialects/"):
            continue  # where an engine has the stage, its table names it
        if path.suffix in (".py", ".pyx", ".pxi", ".pxd", ".h", ".pyi") and place not in EXCEPT:
            found[place] = names & words_of(path)
    found["_core.pyx"] -= {"top_p"}  # a question that `counts` counts
    assert {place for place, words in found.items() if words} == PLACES, found


def test_every_stage_has_its_rows():
    assert list(TABLE) == list(STAGES.values())
    assert list(STAGES) == list(Settings.__annotations__)
    assert {name: one.setting for name, one in STAGES.items()} == {name: name for name in STAGES}
    public = {name for name in sampler.__all__ if issubclass(type(getattr(sampler, name)), type)
              and issubclass(getattr(sampler, name), Stage)}  # fmt: skip
    assert public == {one.__name__ for one in STAGES.values()} == set(stages.__all__)
