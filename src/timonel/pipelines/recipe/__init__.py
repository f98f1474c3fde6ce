"""The recipe of a call, in its pictures."""
