"""Each measurement in a process of its own, one at a time per device."""
