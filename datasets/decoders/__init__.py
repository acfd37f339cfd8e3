"""Video decoders and how one is chosen."""
