"""Poisoned training data and backdoors: put in, found, removed, and trained around."""
