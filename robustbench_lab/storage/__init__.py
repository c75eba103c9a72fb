"""What is on disk; no torch."""
