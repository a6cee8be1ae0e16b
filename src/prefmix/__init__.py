"""prefmix: mixes language-model policies at inference time.

The package's rooms are `prefmix.mixing`, `prefmix.weights`, `prefmix.server`, `prefmix.policies`
and `prefmix.bench`.
"""
