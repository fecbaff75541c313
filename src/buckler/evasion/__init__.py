"""Evasion: inputs changed at test time, and the defences against it."""
