"""Search of one's own videos: an index of a folder made by any model, and queries of it."""
