"""Publishing: what happens to an artifact after it was made."""
