"""``FileExplorer``: what is in a file."""
