"""From records to tables, figures and pages; reads records only."""
