"""What people come for: a picture from a prompt, a video from a picture, and the same once more
from a recipe.
"""
