"""Data packages: what makes an image into one certain node, injected at boot."""
