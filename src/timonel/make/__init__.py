"""A picture from a prompt, a video from a picture, and either again from its recipe."""
