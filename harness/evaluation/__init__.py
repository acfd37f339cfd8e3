"""One score: ranks, metrics, intervals and saved embeddings."""
