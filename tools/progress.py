"""Run a command, and show the seconds that pass and the command's last line of output.

    python tools/progress.py pip install torch

In a terminal one line is overwritten each second; elsewhere a line is added every ten seconds. The
exit status is the command's. Its standard error is shown at the end, and only if it failed.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
import time


def run(command):
    start = time.monotonic()
    last = [""]

    def read():
        for line in process.stdout:
            last[0] = line.strip() or last[0]

    terminal = sys.stdout.isatty()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        )
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while process.poll() is None:
            try:
                process.wait(timeout=1 if terminal else 10)
            except subprocess.TimeoutExpired:
                line = f"   {time.monotonic() - start:3.0f} s  {last[0]}"
                line = line[: shutil.get_terminal_size().columns - 1]
                print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n")
                sys.stdout.flush()
        reader.join(timeout=1)
        if terminal:
            print("\r\033[K", end="", flush=True)
        if process.returncode:
            errors.seek(0)
            sys.stderr.buffer.write(errors.read())
        else:
            print(f"   done in {time.monotonic() - start:.0f} s", flush=True)
    return process.returncode


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
