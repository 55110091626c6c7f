"""Types of NumPy arrays."""

from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
AnyArray = np.ndarray[Any, np.dtype[Any]]
