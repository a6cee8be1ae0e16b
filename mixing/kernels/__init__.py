"""The numerical inner loops of mixing. Each is a pure function of tensors; none needs vLLM."""
