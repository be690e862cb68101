"""Whether a network fits a chip: limits as plain dataclasses, and what a network asks for."""

from sj_prune.chips.fits import Fit, fits
from sj_prune.chips.limits import (
    SPECK2F,
    XYLO_A2,
    XYLO_A3,
    XYLO_IMU,
    Chip,
    Convolution,
    Core,
    Population,
)

__all__ = [
    "SPECK2F",
    "XYLO_A2",
    "XYLO_A3",
    "XYLO_IMU",
    "Chip",
    "Convolution",
    "Core",
    "Fit",
    "Population",
    "fits",
]
