"""The one extension; everything else is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Results are promised to be the same bits on every machine, so the compiler must not fuse a
# multiply into an add, and NaN and infinity must keep their meaning: never -ffast-math. Nor
# -march=native: a wheel has to run elsewhere, and the kernels choose their instruction set at
# import. The two -fno flags give up errno and floating-point traps, which nobody reads and which
# stand in the way of vectorising.
UNIX_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c11"]
MSVC_FLAGS = ["/O2", "/fp:precise", "/std:c11"]


class BuildExt(build_ext):
    """Flags by the compiler that really runs, which is known only here."""

    def build_extensions(self):
        flags = MSVC_FLAGS if self.compiler.compiler_type == "msvc" else UNIX_FLAGS
        for extension in self.extensions:
            extension.extra_compile_args += flags
        super().build_extensions()


core = Extension(
    "sampler._core",
    ["sampler/_core.pyx"],
    include_dirs=["sampler/core"],
    # Without these an edited header, or an edited flag, would not rebuild.
    depends=[*sorted(glob("sampler/core/*")), "setup.py"],
)

# Here and not at the head of the .pyx, since those do not reach the inline functions of a .pxd.
# There a division would check for zero, and swallow the exception.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "freethreading_compatible": True,
    "auto_pickle": False,
    "autotestdict": False,
}

setup(
    ext_modules=cythonize([core], compiler_directives=DIRECTIVES),
    cmdclass={"build_ext": BuildExt},
)
