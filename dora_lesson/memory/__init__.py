"""What a fine-tune takes: estimated, measured, planned and timed."""
