"""Training a model on chats, once or as one of two paired runs."""
