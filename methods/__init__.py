"""The methods under comparison; one line each."""

METHODS = {
    "tempme": "tvrbench.methods.tempme:TempMe",
    "centerclip": "tvrbench.methods.centerclip:CenterCLIP",
    "lora": "tvrbench.methods.adapter:LoRA",
    "vidtome": "tvrbench.methods.vidtome:VidToMe",
}
