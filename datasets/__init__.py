"""Data sets: where each one's adapter lives. Nothing is imported until a name is asked for."""

DATASETS: dict[str, str] = {
    "msrvtt": "tvrbench.datasets.msrvtt:MSRVTT",
    "msvd": "tvrbench.datasets.msvd:MSVD",
    "lsmdc": "tvrbench.datasets.lsmdc:LSMDC",
    "didemo": "tvrbench.datasets.didemo:DiDeMo",
    "activitynet": "tvrbench.datasets.activitynet:ActivityNet",
    "standin": "tvrbench.datasets.standin.dataset:StandIn",
}
