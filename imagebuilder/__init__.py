"""Machine images for Kubernetes nodes, made at build time instead of install time."""

__version__ = "0.1.0"
