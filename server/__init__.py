"""The HTTP server and the `prefmix` command.

One request passes through `traffic` (is there room for it?), `auth` (may it?), `api` (which
weights, and what is answered) and vLLM's own serving code. `plugin` is where vLLM finds these
routes.

Importing this package loads neither vLLM nor torch. Modules that need them are imported by vLLM's
plugin loader or by `launch`, after `--help` and every configuration error have been dealt with.
"""
