"""Search for adversarial examples: one file an attack, `gradients.py` holds what they share."""
