"""Numbers and claims of papers as data, each with its paper, its table and how it was read.

Every CSV file holds numbers as printed (``46.2 +- 0.5`` with its deviation over seeds), except for these; a number that
could not be read is absent.

- ``claims.csv``: claims in words, each against every baseline that it can be read against, costs as released too.
- ``ratios.csv``: times and memory of a paper's tables that are claims when divided by a baseline of the same table. A
  recipe that trains under half precision needs ``bench_options``: memory compares only within one precision.
- ``configurations.csv``: the options here that make a configuration of a paper. A configuration that is missing has no
  counterpart, and its numbers are not compared; one that is ``not_checkable`` gets that reason in place of a verdict.
- ``variants.csv``: options that a paper has a name for.
- ``recipes.csv``: configurations of papers that are one recipe, and who ran it again.
- ``reruns.csv``: what others report for a recipe (issue threads, repositories), with the source and what differs.
- ``names.csv``: methods that a paper and the registry name differently.

``ranks/*.json`` holds published results with the rank of every query: what they were counted from, with its SHA-256 and
its licence, the split and its order, and the checkpoint.
"""
