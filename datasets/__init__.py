"""Data sets: where each one's adapter lives. Nothing is imported until a name is asked for."""

DATASETS: dict[str, str] = {
    "msrvtt": "tvrbench.datasets.msrvtt:MSRVTT",
    "standin": "tvrbench.datasets.standin.dataset:StandIn",
}
