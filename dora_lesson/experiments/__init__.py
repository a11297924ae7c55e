"""An extra that no lesson imports: paired runs from a design file, and the bench."""
