"""Layers that builders share: on S3-compatible storage, on an OCI registry, in another cache folder."""
