"""A package, because its modules are called like those of other layers' tests."""
