"""An extra that no lesson imports: training on several processes."""
