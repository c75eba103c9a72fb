"""Image data: one file a dataset, `base.py` holds the contract."""
