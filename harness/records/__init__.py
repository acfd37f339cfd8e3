"""The JSON record of a run, its store, and its provenance."""
