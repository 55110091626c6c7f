"""Independent random streams of a training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class SeedStreams:
    """Independent random generators of one seed."""

    weights: np.random.Generator
    order: np.random.Generator
    noise: np.random.Generator
    neighbors: np.random.Generator

    @classmethod
    def from_seed(cls, seed: int) -> Self:
        """Returns the streams of a seed from their beginning."""
        return cls(*(np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(4)))

    def state(self) -> dict[str, Any]:
        """Returns the states of all streams as JSON values."""
        return {name: generator.bit_generator.state for name, generator in vars(self).items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`."""
        for name, generator in vars(self).items():
            generator.bit_generator.state = state[name]
