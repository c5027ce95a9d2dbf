"""Time tokens for many requests against one call with scalar settings.

    make bench-requests
    SAMPLER_ISA=v3 make bench-requests    # as on a machine with AVX2 alone

Sixty-four rows in one call, the least of many calls, whole Python calls, warm float32 rows:
*scalar* is one sampler on the batch; *per row* one with arrays of settings; *requests* are
`next_tokens` with 64 samplers. *masked*: with histories, a penalty and masks, in a loop that keeps
its own lists; then requests whose masks are set before each token. *top 5*: `sample` with
``logprobs=5``; then `next_samples`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np

import _machine
from _rows import SETTINGS, VOCAB, batch
from _tables import new_console, new_table
from sampler import Sampler, build_info
from sampler.history import History
from sampler.masks import read_mask
from sampler.request import Request, next_samples, next_tokens

SIZE = 64


def least(call: Callable[[], object], calls: int) -> float:
    """The least time of a call, in microseconds: what other work adds is not its own."""
    found = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        found.append(time.perf_counter_ns() - start)
    return min(found) / 1e3


def measure(keywords: dict[str, float], vocab: int, calls: int) -> list[str]:
    """The cells of a table's row."""
    rows = batch(SIZE, vocab)
    s = Sampler(**keywords, seed=0)  # type: ignore[arg-type]
    near = keywords.get("temperature", 1.0) * np.linspace(0.999, 1.001, SIZE)
    per_row = s.replace(temperature=near)
    requests = [Request(s.replace(temperature=float(t)), stream=i) for i, t in enumerate(near)]
    penal = s.replace(repetition_penalty=1.1)
    words = read_mask(np.random.default_rng(0).random((SIZE, vocab)) < 0.75, (SIZE, vocab))
    histories = [History([1, 2, 3]) for _ in range(SIZE)]
    masked = [Request(penal, [1, 2, 3], stream=i) for i in range(SIZE)]

    def by_hand() -> None:
        drawn = penal(rows, history=histories, mask=words).tolist()
        for history, token in zip(histories, drawn, strict=True):
            history.accept(token)

    def by_requests() -> None:
        for request, word in zip(masked, words, strict=True):
            request.mask = word
        next_tokens(masked, rows)

    scalar, arrays, asked, hand, made, plain, samples = (
        least(call, calls)
        for call in (
            lambda: s(rows), lambda: per_row(rows), lambda: next_tokens(requests, rows), by_hand,
            by_requests, lambda: s.sample(rows, logprobs=5),
            lambda: next_samples(requests, rows, logprobs=5),
        )
    )  # fmt: skip
    return [
        f"{scalar:.0f}", f"{arrays / scalar:.2f}",
        _against(asked, scalar), f"{hand:.0f}", _against(made, hand), f"{plain:.0f}",
        _against(samples, plain),
    ]  # fmt: skip


def _against(time: float, other: float) -> str:
    """The ratio of two times, and the difference for a row."""
    return f"{time / other:.2f} {(time - other) / SIZE:+.1f}"


@click.command(help=__doc__.splitlines()[0])
@click.option("--calls", default=100, show_default=True, help="How often each call is timed.")
def main(calls: int) -> None:
    info, console = _machine.describe(), new_console()
    columns = "scalar", "per row", "requests", "masked", "requests", "top 5", "requests"
    for vocab in (1024, 32_768, VOCAB):
        title = f"V = {vocab:,}, {build_info()['isa']}, {info['processor']}: us; ratio, us a row"
        table = new_table(title, "", right=columns)
        for setting in SETTINGS:
            table.add_row(str(setting), *measure(setting.keywords, vocab, calls))
        console.print(table)


if __name__ == "__main__":
    main()
