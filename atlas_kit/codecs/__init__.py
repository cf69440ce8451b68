"""Compression codecs and filters of stored payloads: one file each, one lookup table (``table``)."""
