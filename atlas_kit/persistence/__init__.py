"""Saved memories: how they lie in ``.atlas`` files, where those are, and their backups."""
