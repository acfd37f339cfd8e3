"""The embedded stand-in: generated clips in MSR-VTT's layout, and the small CLIP pre-trained for them."""
