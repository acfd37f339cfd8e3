"""From a name to a model: backbone, token seam, tunings, heads, checkpoints."""
