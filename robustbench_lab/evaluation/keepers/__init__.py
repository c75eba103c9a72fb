"""What an evaluation keeps of its images, for pictures: one file a keeper."""
