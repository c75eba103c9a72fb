"""Training methods: one file a defense, `base.py` holds the contract."""
