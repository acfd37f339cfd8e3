"""Pure tensor operators behind the methods; importable on their own."""

from tvrbench.methods.ops.frames import FrameMerge, frame_match
from tvrbench.methods.ops.kmedoids import k_medoids
from tvrbench.methods.ops.matching import Merge, bipartite_match
from tvrbench.methods.ops.runs import Runs, changed, most_changed, patch_differences
from tvrbench.methods.ops.spectral import spectral_cluster

__all__ = [
    "FrameMerge",
    "Merge",
    "Runs",
    "bipartite_match",
    "changed",
    "frame_match",
    "k_medoids",
    "most_changed",
    "patch_differences",
    "spectral_cluster",
]
