"""Pure tensor operators behind the methods; importable on their own."""

from tvrbench.methods.ops.frames import FrameMerge, frame_match
from tvrbench.methods.ops.kmedoids import k_medoids
from tvrbench.methods.ops.matching import Merge, bipartite_match
from tvrbench.methods.ops.spectral import spectral_cluster

__all__ = ["FrameMerge", "Merge", "bipartite_match", "frame_match", "k_medoids", "spectral_cluster"]
