"""Buckler: attack, measure and defend deep-learning models."""

__version__ = "0.1.0"
