"""One cost: counted, or measured on this device."""
