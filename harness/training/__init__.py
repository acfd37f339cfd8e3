"""One training: the step, the loop around it, and its state on disk."""
