"""Ties the fork server to the run. The server alone imports this: see SeparatedMultiProcPlugin."""

from bids_app.workflows.lifeline import die_with_parent

die_with_parent()
