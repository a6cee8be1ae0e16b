"""Containers, Kubernetes, Prometheus and Grafana for prefmix; see docs/deploying.md."""
