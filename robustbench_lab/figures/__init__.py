"""Papers' figures, drawn from a table's cells: one file a kind."""
