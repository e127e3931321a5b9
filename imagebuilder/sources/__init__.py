"""Where software comes from: downloads, registries, Go modules, folders of the user."""
