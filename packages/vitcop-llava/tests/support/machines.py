"""Two machines of a Ray cluster, as processes of this one. It prints the address, loses the second at a line of input,
and ends with its input.
"""

import sys
from importlib import import_module

# A lost machine is missed after half a minute; here sooner.
SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}


def main() -> None:
    each = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
    head = {**each, "include_dashboard": False, "_system_config": SOON}
    cluster = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(**each)
        print(cluster.address, flush=True)
        if sys.stdin.readline():
            cluster.remove_node(second, allow_graceful=False)
            sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
