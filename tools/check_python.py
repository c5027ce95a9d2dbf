"""Stop where the Python that runs this is too old. Every Python can read this file."""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "token-sampler needs Python 3.11 or newer, and {} is {}.{}: "
        "name another one with PYTHON=...".format(sys.argv[1], *sys.version_info)
    )
