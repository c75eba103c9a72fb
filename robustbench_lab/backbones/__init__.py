"""Networks: one file an architecture, `base.py` holds the contract."""
