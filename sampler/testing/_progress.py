"""A progress bar: tqdm's, or none."""

from __future__ import annotations

from typing import Any, Self

from sampler._build import install


def bar(total: int, name: str, progress: bool | None) -> Any:
    """Show a tqdm bar on stderr; by default only if that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise ImportError(
                f"`progress` needs tqdm ({error}); it comes with {install('testing')}"
            ) from error
        return _NoBar()
    disable = None if progress is None else not progress
    return tqdm(total=total, desc=name, unit_scale=True, leave=False, disable=disable)


class _NoBar:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_description(self, text: str) -> None:
        pass
