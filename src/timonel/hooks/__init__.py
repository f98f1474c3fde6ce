"""Hooks that ship with timonel: what a run shows, keeps and checks while it goes. The base class is
`core.hook`.
"""
