"""Constants that keep the arithmetic of doubles accurate; `sampler.torch` uses them too."""

import numpy as np

EPS, SMALLEST, LARGEST = 2.0**-52, 5e-324, float(np.finfo(np.float64).max)
# exp of it is 0 in float32 and float64. It stands in for -inf, with which 0 * -inf would be NaN.
NO_WEIGHT = -1000.0
NEAR_OVERFLOW = 2.0**969  # from here on the difference of two doubles may overflow
CLOSE = 0.25  # |log(q / p)| below which a series is more accurate than a difference
