"""What is measured: encoding, a training step, video file to ranking."""
