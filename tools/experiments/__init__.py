"""The paper's claims (arXiv 2505.23735), measured with atlas_kit.memory: ``python -m tools.experiments``."""

from __future__ import annotations

NAMES = ("capacity", "omega_vs_delta", "muon_vs_gd", "forgetting", "mqar")
