"""The job that the lessons train for: chats of a task list, the calls in them, and their scores."""
