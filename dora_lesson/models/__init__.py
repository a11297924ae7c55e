"""Llamas to adapt: the bundled one, any from the hub, and published configurations."""
