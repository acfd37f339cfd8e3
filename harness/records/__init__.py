"""What a run leaves: one JSON record, its store, and where it came from."""
