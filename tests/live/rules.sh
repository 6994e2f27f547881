#!/usr/bin/env bash
# promtool on deploy/prometheus: the configuration, the rules, and each alert firing and not firing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command -v promtool >/dev/null || { echo "promtool is not installed: deploy/install.sh --tests" >&2; exit 1; }
promtool check config deploy/prometheus/prometheus.yml
promtool check rules deploy/prometheus/alerts.yml
promtool test rules tests/live/alerts_test.yml
for alert in $(sed -n 's/.*- alert: //p' deploy/prometheus/alerts.yml); do
  (($(grep -cw "alertname: $alert" tests/live/alerts_test.yml) >= 2)) ||
    { echo "FAILED: $alert is not tested firing and not firing" >&2; exit 1; }
done
