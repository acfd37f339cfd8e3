"""Data sets: the adapter of each name. A module is imported when its name is looked up."""

DATASETS: dict[str, str] = {
    "msrvtt": "tvrbench.datasets.msrvtt:MSRVTT",
    "msvd": "tvrbench.datasets.msvd:MSVD",
    "lsmdc": "tvrbench.datasets.lsmdc:LSMDC",
    "didemo": "tvrbench.datasets.didemo:DiDeMo",
    "activitynet": "tvrbench.datasets.activitynet:ActivityNet",
    "folder": "tvrbench.datasets.folder:FolderDataset",
    "standin": "tvrbench.datasets.standin.dataset:StandIn",
}
