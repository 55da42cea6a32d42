"""Train, attack, harden and judge recommender systems."""

__version__ = "0.1.0"
