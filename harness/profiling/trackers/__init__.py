"""One instrument a file: time, memory, clocks, interference."""
