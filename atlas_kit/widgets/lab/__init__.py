"""``MemoryLab``: watch a memory learn."""
