"""Instruments of cost, one a file: multiply-adds, throughput and latency, memory. None of them needs a data set."""
