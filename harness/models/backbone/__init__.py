"""The CLIP dual encoder with an open token stream."""
