"""From files to batches: splits, frames, caches, downloads and checks."""
