"""Where weights come from: profiles fitted offline, with a certificate of how good they are.

The room of the fit: score table, objective, mirror descent, sampling and scoring jobs, and the
store that the server reloads. It may import the pure part of `mixing`; the server may import it.
"""
