"""What runs in the image: one file, standing alone."""
