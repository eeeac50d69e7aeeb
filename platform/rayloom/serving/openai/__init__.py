"""The OpenAI API: its bodies, its streams and its errors, over the same calls as our own routes."""
