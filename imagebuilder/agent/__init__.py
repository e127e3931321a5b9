"""What runs in the image: one file, the standard library only."""
