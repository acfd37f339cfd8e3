"""The papers' numbers as data: each with its paper, its table and how it was read. ``harness/reporting`` loads them.

``centerclip.csv`` and ``tempme.csv`` hold the numbers as printed; what could not be read is absent.
``configurations.csv`` says which options of ours make a configuration that a paper names; a name that is missing
there has no counterpart here, and its numbers are not compared.
"""
