"""Scenarios to measure: encoding, a training step, from video files to a ranking."""
