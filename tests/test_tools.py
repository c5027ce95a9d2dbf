"""The programs in tools/ that the Makefile runs."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRESS = Path(__file__).parents[1] / "tools" / "progress.py"


def progress(code):
    command = [sys.executable, str(PROGRESS), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_progress_hides_the_warnings_of_a_success():
    run = progress("import sys; print('Collecting'); print('WARNING', file=sys.stderr)")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "   done in 0 s\n"


def test_progress_shows_the_errors_of_a_failure():
    run = progress("import sys; print('Collecting'); sys.exit('no compiler')")
    assert (run.returncode, run.stdout, run.stderr) == (1, "", "no compiler\n")


@pytest.mark.slow
def test_progress_shows_the_last_line_of_a_long_command():
    run = progress("import time; print('Collecting torch', flush=True); time.sleep(10.5)")
    assert run.stdout.splitlines()[0] == "    10 s  Collecting torch"
