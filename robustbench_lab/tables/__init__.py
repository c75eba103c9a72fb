"""Papers' tables: read, planned, filled and written; no torch."""
