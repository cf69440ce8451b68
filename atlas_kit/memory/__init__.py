"""A memory that learns at test time: the ATLAS paper (arXiv 2505.23735) on NumPy and CuPy.

Knows no files and no language model. Start with ``Memory(presets.atlas(d_k, d_v))``: ``observe``, ``read``.
"""

from __future__ import annotations

from atlas_kit.memory import presets
from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.features import (
    Exponential,
    Features,
    Identity,
    Polynomial,
    RandomFourier,
    WinnerTakeAll,
)
from atlas_kit.memory.gate import Gate, gate_features
from atlas_kit.memory.modules import GatedMLP, Matrix, ResidualMLP, WhitenedMatrix
from atlas_kit.memory.muon import newton_schulz
from atlas_kit.memory.neural_memory import Memory
from atlas_kit.memory.objectives import L2, CrossEntropy, DotProduct, Readout
from atlas_kit.memory.ranking import Ranking, match_lengths
from atlas_kit.memory.schedules import Schedule
from atlas_kit.memory.sessions import LearningReport
from atlas_kit.memory.state import MemoryState, snapshot, stack
from atlas_kit.memory.statistics import distance, merge, statistics
from atlas_kit.memory.whitened import WhitenedMemory
from atlas_kit.memory.window import CacheRead

__all__ = [
    "L2",
    "CacheRead",
    "CrossEntropy",
    "DotProduct",
    "Exponential",
    "Features",
    "Gate",
    "GatedMLP",
    "Identity",
    "LearningReport",
    "Matrix",
    "Memory",
    "MemoryConfig",
    "MemoryState",
    "Polynomial",
    "RandomFourier",
    "Ranking",
    "Readout",
    "ResidualMLP",
    "Schedule",
    "WhitenedMatrix",
    "WhitenedMemory",
    "WinnerTakeAll",
    "distance",
    "gate_features",
    "match_lengths",
    "merge",
    "newton_schulz",
    "presets",
    "snapshot",
    "stack",
    "statistics",
]
