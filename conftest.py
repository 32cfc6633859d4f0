"""Plugins of the project's own tests; the product's plugin comes by its entry point."""

pytest_plugins = ("pytester",)
