"""Train, attack and tabulate adversarially robust image classifiers."""

__version__ = "0.1.0"
