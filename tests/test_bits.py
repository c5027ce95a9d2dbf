"""The loops give the same bits by every compiler, C library and processor that is at hand."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11")
# name -> the compiler, more of its flags, and what runs its programs
BUILDS = {
    "gcc": (["gcc"], []),
    "gcc without optimising": (["gcc", "-O0"], []),
    "clang": (["clang", "-Wno-unknown-pragmas"], []),
    "gcc with musl": (["musl-gcc", "-static"], []),
    "gcc for arm64, emulated": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64"]),
}


def run(folder, compiler, runner):
    program = folder / "bits"
    first, *flags = compiler
    subprocess.run(
        [first, *FLAGS, *flags, f"-I{ROOT / 'sampler' / 'core'}", str(ROOT / "tests" / "bits.c"),
         "-o", str(program), "-lm"],
        check=True,
    )  # fmt: skip
    done = subprocess.run([*runner, program], check=True, capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("build", list(BUILDS)[1:])
def test_other_builds_give_the_same_bits(tmp_path, build):
    for tool in (BUILDS["gcc"][0][0], BUILDS[build][0][0], *BUILDS[build][1]):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    usual = run(tmp_path, *BUILDS["gcc"])
    other = run(tmp_path, *BUILDS[build])
    assert len({*usual.values(), *other.values()}) == 1
    assert "baseline" in other
