"""Config in, files out: one file a verb."""
