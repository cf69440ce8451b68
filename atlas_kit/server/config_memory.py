"""Which memories a server's conversations have, and where these are kept: rows of its configuration."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from atlas_kit.server.config_rows import row
from atlas_kit.storage.urls import is_url


@dataclass(frozen=True)
class MemoryRows:
    """The rows of memories; ``ServerConfig`` has them, too."""

    atlas: bool = row(
        False,
        bool,
        "Put a memory beside every conversation.",
        "atlas",
        off=("no-atlas",),
        variables=("ATLAS",),
        group="Memory",
    )
    atlas_auto: bool = row(
        False,
        bool,
        "The same, with the settings that `recommend` suggests.",
        "atlas-auto",
        variables=("ATLAS_AUTO",),
        group="Memory",
    )
    atlas_memory_persist: bool = row(
        False,
        bool,
        "Keep the memory that all requests without a session share in MODEL_memory.atlas.",
        "atlas-memory-persist",
        variables=("ATLAS_MEMORY_PERSIST",),
        group="Memory",
    )
    atlas_memory_file: str | None = row(
        None,
        str,
        "Keep it in this file instead.",
        "atlas-memory-file",
        "atlas-file",
        metavar="FILE",
        variables=("ATLAS_MEMORY_FILE",),
        group="Memory",
    )
    atlas_memory_dir: str | None = row(
        None,
        str,
        "The folder of memories that clients may save and load by name, and of sessions; or an address, such as s3://.",
        "atlas-memory-dir",
        metavar="DIR",
        variables=("ATLAS_MEMORY_DIR",),
        group="Memory",
    )
    atlas_memory_spool: str | None = row(
        None,
        str,
        "Where files of an address are worked on, and wait while that is away: else ~/.local/state/atlas-kit.",
        "atlas-memory-spool",
        metavar="DIR",
        variables=("ATLAS_MEMORY_SPOOL",),
        group="Memory",
    )
    atlas_lease_seconds: float = row(
        15.0,
        float,
        "Seconds without a sign of life after which servers of one address take another's sessions.",
        "atlas-lease-seconds",
        metavar="S",
        least=0.5,
        most=3600,
        variables=("ATLAS_LEASE_SECONDS",),
        group="Memory",
    )
    atlas_replica_name: str | None = row(
        None,
        str,
        "What others call this server, where several share an address.  [default: the machine's name]",
        "atlas-replica-name",
        metavar="NAME",
        variables=("ATLAS_REPLICA_NAME",),
        group="Memory",
    )
    atlas_auto_save_interval: float = row(
        300.0,
        float,
        "Seconds between two saves of what has changed.",
        "atlas-auto-save-interval",
        metavar="S",
        least=1,
        most=86400 * 365,
        variables=("ATLAS_AUTO_SAVE_INTERVAL",),
        group="Memory",
    )
    atlas_auto_save: bool = row(
        True,
        bool,
        "Save while running, too, not only at the end.",
        "atlas-auto-save",
        off=("atlas-no-auto-save",),
        variables=("ATLAS_AUTO_SAVE",),
        group="Memory",
    )
    atlas_memory_compress: bool = row(
        False,
        bool,
        "Compress saved memories.",
        "atlas-memory-compress",
        off=("no-atlas-memory-compress",),
        variables=("ATLAS_MEMORY_COMPRESS",),
        group="Memory",
    )
    atlas_key_file: str | None = row(
        None,
        str,
        "Encrypt what is saved of memories, sessions and answers, with the 32 bytes in this file.",
        "atlas-key-file",
        metavar="FILE",
        variables=("ATLAS_KEY_FILE",),
        group="Memory",
    )
    atlas_memory_backup_count: int = row(
        3,
        int,
        "Older versions of a saved memory to keep.",
        "atlas-memory-backup-count",
        metavar="N",
        least=0,
        most=1000,
        variables=("ATLAS_MEMORY_BACKUP_COUNT",),
        group="Memory",
    )
    atlas_warm_sessions: int = row(
        64,
        int,
        "Named sessions that stay in main memory; the others are in files until they are asked for.",
        "atlas-warm-sessions",
        metavar="N",
        least=0,
        most=1 << 20,
        variables=("ATLAS_WARM_SESSIONS",),
        group="Memory",
    )
    atlas_max_sessions: int = row(
        10_000,
        int,
        "Named sessions that one API key may have, in main memory and in files; 0: any number.",
        "atlas-max-sessions",
        metavar="N",
        least=0,
        most=1 << 30,
        variables=("ATLAS_MAX_SESSIONS",),
        group="Memory",
    )
    cache_ram: int = row(
        8192,
        int,
        "MiB of main memory for conversations that are in no slot; -1: any number.",
        "cache-ram",
        "cram",
        metavar="MIB",
        least=-1,
        most=1 << 24,
        variables=("LLAMA_ARG_CACHE_RAM",),
        group="Memory",
    )
    atlas_context_disk: int = row(
        16384,
        int,
        "MiB of contexts in the files of sessions, so that their texts are not read again; -1: any number.",
        "atlas-context-disk",
        metavar="MIB",
        least=-1,
        most=1 << 24,
        variables=("ATLAS_CONTEXT_DISK",),
        group="Memory",
    )
    atlas_load_optimizer: bool = row(
        True,
        bool,
        "Load the optimiser's state with a memory.",
        "atlas-load-optimizer",
        off=("atlas-no-load-optimizer",),
        variables=("ATLAS_LOAD_OPTIMIZER",),
        group="Memory",
    )
    atlas_load_window: bool = row(
        True,
        bool,
        "Load the window with a memory.",
        "atlas-load-window",
        off=("atlas-no-load-window",),
        variables=("ATLAS_LOAD_WINDOW",),
        group="Memory",
    )
    atlas_window: int | None = row(
        None,
        int,
        "Pairs that the exact window keeps (window_size).",
        "atlas-window",
        "atlas-window-size",
        metavar="N",
        least=0,
        most=1 << 24,
        variables=("ATLAS_WINDOW",),
        group="Memory",
    )
    atlas_blend: str | None = row(
        None,
        str,
        "Weight of the window's prediction, or adaptive (blend_ratio).",
        "atlas-blend",
        "atlas-blend-ratio",
        metavar="X",
        variables=("ATLAS_BLEND",),
        group="Memory",
    )
    atlas_learning_rate: float | None = row(
        None,
        float,
        "Step size of the learned memory.",
        "atlas-learning-rate",
        metavar="X",
        least=0,
        most=100,
        variables=("ATLAS_LEARNING_RATE",),
        group="Memory",
    )
    atlas_polynomial: int | None = row(
        None,
        int,
        "Degree of the feature map (polynomial_degree).",
        "atlas-polynomial",
        "atlas-polynomial-degree",
        metavar="N",
        least=1,
        most=3,
        variables=("ATLAS_POLYNOMIAL",),
        group="Memory",
    )
    atlas_memory_dim: int | None = row(
        None,
        int,
        "Width of the memory's keys (memory_dim).",
        "atlas-memory-dim",
        metavar="N",
        least=1,
        most=4096,
        variables=("ATLAS_MEMORY_DIM",),
        group="Memory",
    )
    atlas_muon: bool | None = row(
        None,
        bool,
        "Orthogonalise the steps (use_muon).",
        "atlas-muon",
        off=("no-atlas-muon",),
        variables=("ATLAS_MUON",),
        group="Memory",
    )
    atlas_recall: str | None = row(
        None,
        str,
        "Read again, before an answer, what was read or said earlier: where it helps (auto), never or always (recall).",
        "atlas-recall",
        choices=("auto", "off", "always"),
        variables=("ATLAS_RECALL",),
        group="Memory",
    )
    atlas_recall_segments: int | None = row(
        None,
        int,
        "Pieces that are read again for a question at most (recall_segments).",
        "atlas-recall-segments",
        metavar="N",
        least=1,
        most=16,
        variables=("ATLAS_RECALL_SEGMENTS",),
        group="Memory",
    )
    atlas_recall_gate: float | None = row(
        None,
        float,
        "Nats per token of the question that a piece must gain (recall_gate).",
        "atlas-recall-gate",
        metavar="X",
        least=-100,
        most=100,
        variables=("ATLAS_RECALL_GATE",),
        group="Memory",
    )
    atlas_episode_tokens: int | None = row(
        None,
        int,
        "Tokens of what was read and said that a memory keeps word for word; 0: none (episode_tokens).",
        "atlas-episode-tokens",
        metavar="N",
        least=0,
        most=1 << 30,
        variables=("ATLAS_EPISODE_TOKENS",),
        group="Memory",
    )
    device: str = row(
        "cpu",
        str,
        "Where memories compute.",
        "device",
        choices=("cpu", "cuda"),
        variables=("ATLAS_DEVICE",),
        group="Memory",
    )

    @property
    def remembers(self) -> bool:
        """Whether conversations have a memory where a request does not say."""
        return self.atlas or self.atlas_auto or self.persists

    @property
    def persists(self) -> bool:
        """Whether requests without a session share a memory that is kept."""
        return self.atlas_memory_persist or self.atlas_memory_file is not None

    @property
    def memory_address(self) -> str | None:
        """The address of the folder of memories, where it is not on this machine."""
        return self.atlas_memory_dir if is_url(self.atlas_memory_dir) else None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings of memories that were chosen, under their usual names."""
        blend: Any = self.atlas_blend
        if blend is not None:
            with contextlib.suppress(ValueError):
                blend = float(blend)
        found = {
            "window_size": self.atlas_window,
            "blend_ratio": blend,
            "learning_rate": self.atlas_learning_rate,
            "polynomial_degree": self.atlas_polynomial,
            "memory_dim": self.atlas_memory_dim,
            "use_muon": self.atlas_muon,
            "recall": self.atlas_recall,
            "recall_segments": self.atlas_recall_segments,
            "recall_gate": self.atlas_recall_gate,
            "episode_tokens": self.atlas_episode_tokens,
        }
        return {name: value for name, value in found.items() if value is not None}
