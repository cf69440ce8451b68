"""``MemoryCompare``: two memories side by side."""
