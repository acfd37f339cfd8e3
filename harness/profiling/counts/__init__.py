"""Multiply-adds, parameters and tokens, counted without running on a device."""
