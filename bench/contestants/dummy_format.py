"""The name of the load format of `dummy_loader`."""

DUMMY = "prefmix_bench_dummy"
