"""`python -m sampler selftest`: what it says, and how it ends."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import sampler
from sampler import Sampler, Temperature, _core
from sampler.__main__ import main
from sampler._build import install
from sampler.stages.settings import STAGES
from sampler.testing import _selftest

FEW = ["selftest", "--draws", "2000"]
ISAS = sampler.build_info()["isas"]


@pytest.fixture
def short(monkeypatch):
    """Two settings, two dtypes: a second."""
    settings = {name: _selftest.SETTINGS[name] for name in ("softmax", "top-k")}
    monkeypatch.setattr(_selftest, "SETTINGS", settings)
    monkeypatch.setattr(_selftest, "DTYPES", ("float32", "bfloat16"))


def invoke(*arguments):
    return CliRunner().invoke(main, arguments)


def warmer(stages, **settings):
    """A sampler whose temperature is 10 % too high."""
    return Sampler((*stages, Temperature(1.1)), **settings)


def test_alone_it_shows_help():
    result = invoke()
    assert result.exit_code == 0
    assert "selftest" in result.output


@pytest.mark.usefixtures("short")
def test_a_right_build():
    result = invoke(*FEW)
    assert result.exit_code == 0
    assert f"sampler {sampler.__version__}, compiled by " in result.output
    assert ", ".join(ISAS) in result.output
    assert "Your build samples correctly: " in result.output
    assert result.output.count(" ok ") == len(ISAS) + 2


@pytest.mark.usefixtures("short")
def test_json():
    result = invoke(*FEW, "--json", "--seed", str(2**64 - 1))
    assert result.exit_code == 0
    output = json.loads(result.output)
    assert output["ok"] is True and output["findings"] == []
    assert output["build"]["isas"] == list(ISAS)
    assert list(output["parts"]) == [*ISAS, "uniforms", "independence"]
    names = list(output["parts"][ISAS[0]]["parts"])
    assert names[:2] == ["softmax, float32, one by one", "softmax, float32"]
    assert output["draws"] == sum(part["draws"] for part in output["parts"].values())
    assert 0 < output["detectable_bias"] < 1


@pytest.mark.usefixtures("short")
def test_a_wrong_temperature(monkeypatch):
    monkeypatch.setattr(_selftest, "Sampler", warmer)
    result = invoke("selftest", "--draws", "10000")
    assert result.exit_code == 1
    assert "Your build does NOT sample correctly" in result.output
    assert "FAULT" in result.output
    output = " ".join(result.output.split())
    assert f"{ISAS[0]}: softmax, float32, one by one: " in output
    assert "tokens differ from the reference's" in output
    assert f"{ISAS[0]}: softmax, float32: the counts do not fit the probabilities" in output


@pytest.mark.usefixtures("short")
def test_one_instruction_set_is_wrong(monkeypatch):
    chosen = []
    choose_isa = _core.choose_isa

    def choose(isa):
        chosen.append(isa)
        return choose_isa(isa)

    def one_wrong(stages, **settings):
        return (warmer if chosen[-1] == ISAS[0] else Sampler)(stages, **settings)

    monkeypatch.setattr(_core, "choose_isa", choose)
    monkeypatch.setattr(_selftest, "Sampler", one_wrong)
    result = _selftest.selftest(draws=2000)
    wrong = [name for name, part in result.parts.items() if part.ok is False]
    # With one level only, the independence part draws on the wrong one as well.
    assert wrong == ([ISAS[0]] if len(ISAS) > 1 else [ISAS[0], "independence"])
    assert chosen[-1] == sampler.build_info()["isa"]


@pytest.mark.usefixtures("short")
def test_wrong_uniforms(monkeypatch):
    monkeypatch.setattr(_selftest, "_uniform", lambda seed=0, stream=0, step=0, lane=0: 0.5)
    result = _selftest.selftest(draws=2000)
    assert [name for name, part in result.parts.items() if part.ok is False] == ["uniforms"]
    assert "1,000 of 1,000 uniforms differ from those of NumPy's Philox" in result.findings[0]


@pytest.mark.usefixtures("short")
def test_too_few_draws_are_no_pass():
    result = invoke("selftest", "--draws", "10")
    assert result.exit_code == 3
    assert "No conclusion" in result.output


@pytest.mark.parametrize(
    "arguments", [["--draws", "0"], ["--draws", str(2**40)], ["--seed", "-1"], ["--quick"]]
)
def test_wrong_usage(arguments):
    assert invoke("selftest", *arguments).exit_code == 2


def test_the_range_of_draws():
    with pytest.raises(ValueError, match="`draws` has to be an integer >= 1, but is 0"):
        _selftest.selftest(draws=0)


def run(*arguments, without=None):
    hide = f"sys.modules[{without!r}] = None; " if without else ""
    code = f"import sys, runpy; {hide}runpy.run_module('sampler', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("package", ["click", "scipy", "rich", "tqdm"])
def test_a_package_that_is_missing(package):
    result = run("selftest", without=package)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"python -m sampler needs {package} (")
    assert result.stderr.endswith(f"it comes with {install('testing')}\n")
    assert result.stderr.count("\n") == 1


def test_as_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "sampler", *FEW, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["ok"] is True


def test_every_scale_and_cut_is_drawn_with():
    used = {type(stage) for stages in _selftest.SETTINGS.values() for stage in stages}
    assert used == {stage for stage in STAGES.values() if stage.kind in ("scale", "cut")}
