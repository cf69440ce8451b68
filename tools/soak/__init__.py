"""Many clients and many faults against a real server, for as long as one likes: see ``runner.py``."""
