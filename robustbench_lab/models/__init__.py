"""What a trained object is made of."""
