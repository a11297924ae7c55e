"""Which adapter for which constraints: request, what fits, the tree, findings, text."""
