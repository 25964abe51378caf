"""How much of a layer evolves after an epoch: the share ζ of its weights that goes (Chouliaras 2021, chapters 3, 4).

With i epochs done out of n:

    SET   ζ                                                            section 3.5
    LDV   ζ_min + (ζ − ζ_min) (n − i) / n                              section 4.3
    OSV   (ζ + ζ_min) / 2 + (ζ − ζ_min) / 2 · cos(2π i / T),  T = 2 n / (3 + 2 κ)     section 4.4
    EXD   ζ (1 − interest)^i                                           section 4.5

`fixprob` keeps its first connections, `dense` has all of them; both evolve nothing.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["set", "ldv", "osv", "exd", "fixprob", "dense"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Schedule:
    """A method with its parameters.

    Attributes:
        method: which of them.
        zeta: ζ, the share at the start, in [0, 1).
        zeta_min: ζ_min of LDV and OSV, at most `zeta`.
        kappa: κ of OSV; with it grows how often ζ rises and falls.
        interest: of EXD, in [0, 1).
    """

    method: Method = "set"
    zeta: float = 0.3
    zeta_min: float = 0.01
    kappa: float = 1.0
    interest: float = 0.01

    def at(self, done: int, epochs: int) -> float:
        """ζ after an epoch.

        Args:
            done: epochs that are over, from 1.
            epochs: of the whole training.
        """
        low, high = self.zeta_min, self.zeta
        match self.method:
            case "set":
                return high
            case "ldv":
                return low + (high - low) * (epochs - done) / epochs
            case "osv":
                period = 2 * epochs / (3 + 2 * self.kappa)
                return (high + low) / 2 + (high - low) / 2 * math.cos(2 * math.pi * done / period)
            case "exd":
                return high * (1 - self.interest) ** done
            case _:
                return 0.0
