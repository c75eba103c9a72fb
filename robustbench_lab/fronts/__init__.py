"""What stands before a network, each with the surrogate that its gradient is taken from: one file a front."""
