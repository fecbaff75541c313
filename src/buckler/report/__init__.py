"""The report: projections of one frozen record, `buckler.findings.Report`, and the figures that findings carry.

`render.render` writes them all, `json_.read` reads the record back. Nothing here decides anything: the outcome is
`buckler.findings.verdict`, and every number is an `Estimate` of the record.
"""
