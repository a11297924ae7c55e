"""The subject: magnitude and direction of a weight, the LoRA and DoRA layers, and how they enter a model and a file."""
