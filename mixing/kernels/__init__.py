"""The numerical inner loops of mixing, each a pure function of tensors; no vLLM, no server."""
