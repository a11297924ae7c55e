"""What a lesson shows: figures and widgets."""
