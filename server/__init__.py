"""The HTTP server and the `prefmix` command.

A request passes through `auth` (is the client allowed?), `traffic` (is there room for it?), `api`
(its weights and its answer) and vLLM's own serving code. vLLM loads `plugin`, which puts them in
place; `admin` and `console` add their routes there. `cli` holds the commands, and `launch` starts
vLLM with the settings of `config`. `telemetry` and `http` serve all of them.

Importing this package loads neither vLLM nor torch. vLLM's plugin loader and `launch` import the
modules that need them, once `--help` and errors of the configuration have been dealt with.
"""
