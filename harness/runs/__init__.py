"""From a protocol to records: context, runner, resume, sweeps."""
