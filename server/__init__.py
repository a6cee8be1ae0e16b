"""The HTTP room: `prefmix serve`, the OpenAI-compatible routes and what they refuse.

Importing this package needs neither vLLM nor torch. Modules that do (`schemas`, `routes`,
`endpoints`, `engine_args`) are imported by vLLM's plugin loader or by `launch`, after `--help` and
every configuration error have been dealt with.

One request through this room: `routes` reads the body, `resolve` turns its names into weights,
`schemas` puts the weights on vLLM's sampling parameters, vLLM's own serving code does the rest.
"""
