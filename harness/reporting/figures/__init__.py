"""Figures of a report. Importing them imports matplotlib and leaves its backend alone: they are drawn without one."""

from tvrbench.harness.core.errors import UsageError

try:
    import matplotlib as _  # noqa: F401 - here, before any figure does
except ValueError as error:
    raise UsageError(
        f"matplotlib does not start ({error}): correct MPLBACKEND or the matplotlibrc in use", code="figures.matplotlib"
    ) from error
