"""Bytes wherever they lie: sources that are opened once and read at random, and files that are replaced whole."""
