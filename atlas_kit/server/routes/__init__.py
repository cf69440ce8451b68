"""The endpoints, one module for each family: what a client sends becomes a ``Generation``, what comes an answer."""
