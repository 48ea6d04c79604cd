"""The federation across hospitals, over Flower's SuperLink and SuperNode.

flwr reads its switches when it is first imported, so they are set here: nothing may call home from a hospital or its
coordinator. No telemetry, no look-up of updates, no tracing, no installing of an app's dependencies, no legacy servers.
"""

import os

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TRACING_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_INTERNAL_GRPC_CONTROL_API": "0",
    "FLWR_INTERNAL_GRPC_FLEET_API": "0",
}
os.environ.update(SWITCHES)
