"""JupyterLab."""
