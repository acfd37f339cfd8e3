"""What each ``tvrbench`` command does; one module a command, parsed in ``tvrbench.harness.cli``."""
