"""The report of an experiment: report.html and report.md."""
