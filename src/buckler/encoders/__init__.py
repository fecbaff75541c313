"""Encoders that are pre-trained without labels: the ten security and privacy problems, attacked and defended."""
