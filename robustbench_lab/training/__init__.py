"""The one training loop, and what it starts from and leaves."""
