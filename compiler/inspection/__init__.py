"""Inspection: a plan told to people, in the terminal, in a notebook and in a browser.

Reads bundles and plans; changes nothing. `slicewise.report` has the text of a plan itself.
"""
