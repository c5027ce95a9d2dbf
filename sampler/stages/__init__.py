"""The vocabulary of stages: what each does, its setting, its range, its source.

`edits` come first in a chain; `scales` and `cuts` follow in any order; one of `memories` may be
last. `base` says what a stage is, `settings` lists all of them in the order in which keywords
apply.
"""

from sampler.stages import cuts, edits, memories, scales
from sampler.stages.cuts import *  # noqa: F403 -- each module's __all__ lists its stages
from sampler.stages.edits import *  # noqa: F403
from sampler.stages.memories import *  # noqa: F403
from sampler.stages.scales import *  # noqa: F403

__all__ = []
__all__ += edits.__all__
__all__ += scales.__all__
__all__ += cuts.__all__
__all__ += memories.__all__
