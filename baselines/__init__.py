"""What the methods are compared with; one line each."""

BASELINES = {
    "zero_shot": "tvrbench.baselines.zero_shot:ZeroShot",
    "clip4clip": "tvrbench.baselines.clip4clip:CLIP4Clip",
}
