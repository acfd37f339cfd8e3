"""Baselines that the methods are compared with; one line each."""

BASELINES = {
    "zero_shot": "tvrbench.baselines.zero_shot:ZeroShot",
    "clip4clip": "tvrbench.baselines.clip4clip:CLIP4Clip",
    "tome": "tvrbench.baselines.tome:ToMe",
    "frame_subsample": "tvrbench.baselines.frame_subsample:FrameSubsample",
    "token_sampling": "tvrbench.baselines.token_sampling:TokenSampling",
    "random": "tvrbench.baselines.random:Random",
}
