"""What was recorded and published, and the statistics that compare it."""
