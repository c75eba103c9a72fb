"""What an evaluation keeps of its images, for pictures and tables: one file a keeper."""
