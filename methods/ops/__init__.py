"""Pure tensor operators behind the methods; importable on their own."""

from tvrbench.methods.ops.matching import Merge, bipartite_match

__all__ = ["Merge", "bipartite_match"]
