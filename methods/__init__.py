"""The methods under comparison; one line each."""

METHODS = {
    "tempme": "tvrbench.methods.tempme:TempMe",
    "centerclip": "tvrbench.methods.centerclip:CenterCLIP",
    "lora": "tvrbench.methods.adapter:LoRA",
    "adapter": "tvrbench.methods.adapter:Adapter",
    "bias": "tvrbench.methods.adapter:Bias",
    "prompts": "tvrbench.methods.adapter:Prompts",
    "dgl": "tvrbench.methods.dgl:DGL",
    "rlt": "tvrbench.methods.rlt:Rlt",
    "rap": "tvrbench.methods.rap:Rap",
    "mv_adapter": "tvrbench.methods.mv_adapter:MvAdapter",
    "discovla": "tvrbench.methods.discovla:DiscoVLA",
    "eercf": "tvrbench.methods.eercf:EERCF",
    "evit": "tvrbench.methods.evit:EViT",
    "masked": "tvrbench.methods.masked:Masked",
    "vidtome": "tvrbench.methods.vidtome:VidToMe",
    "ts2net": "tvrbench.methods.ts2net:TS2Net",
    "xpool": "tvrbench.methods.xpool:XPool",
    "drl": "tvrbench.methods.drl:DRL",
    "testa": "tvrbench.methods.testa:TESTA",
    "vop": "tvrbench.methods.vop:VoP",
}
