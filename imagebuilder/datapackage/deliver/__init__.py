"""How a data package is handed to a machine of each target: files to give to it, and the command that does so."""
