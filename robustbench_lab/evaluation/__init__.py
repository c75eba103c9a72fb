"""Attack a finished run, image by image, and say why its figures might deserve distrust."""
