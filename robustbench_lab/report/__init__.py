"""One page of every table, chart, picture and record; no torch."""
