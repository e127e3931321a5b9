"""Proves a finished artifact, offline and booted, whoever made it."""
