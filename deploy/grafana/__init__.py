"""The Grafana dashboards as code; `python -m deploy.generate` writes their JSON."""
