"""The settings of a memory beside a model: their one table, and what is recommended for a model."""
